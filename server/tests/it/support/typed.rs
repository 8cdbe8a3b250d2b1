//! RPCs of the tests' own: compiled when a test runs, and called with messages written as JSON.

use std::{fs, path::Path};

use outbox_server::{api::typed::codec::Dynamic, config::Config};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use tonic::{Request, Response, Status, client::Grpc, transport::Channel};
use uuid::Uuid;

/// The descriptor set of a file, with all its imports.
pub(crate) fn compile(name: &str, proto: &str) -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("outboxd-proto-{}", Uuid::now_v7()));
    fs::create_dir(&folder).expect("a folder can be made");
    fs::write(folder.join(name), proto).expect("a file can be written");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut compiler = protox::Compiler::new([&folder, &ours]).expect("the folders are there");
    let compiled = compiler.include_imports(true).open_file(name).map(|compiled| compiled.encode_file_descriptor_set());
    fs::remove_dir_all(&folder).expect("the folder is there");
    compiled.unwrap_or_else(|error| panic!("{name} does not compile: {error:?}"))
}

/// Adds a descriptor set to a server's catalog.
pub(crate) fn add(config: &Config, name: &str, descriptors: &[u8]) {
    let dir = config.catalog.dir.as_ref().expect("there is a catalog");
    fs::write(dir.join(name), descriptors).expect("a file can be written");
}

/// A caller of any method whose descriptor it has.
#[derive(Clone)]
pub(crate) struct Caller {
    pool: DescriptorPool,
    channel: Channel,
}

impl Caller {
    pub(crate) fn new(descriptors: &[u8], channel: Channel) -> Self {
        Self { pool: DescriptorPool::decode(descriptors).expect("a descriptor set"), channel }
    }

    /// The message of a method's request.
    pub(crate) fn message(&self, method: &str, json: Value) -> DynamicMessage {
        let (request, _) = self.types(method);
        DynamicMessage::deserialize(request, json).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Calls a method, such as `test.v1.Bank/Add`, with this request id; an empty one is left out.
    pub(crate) async fn call(&self, method: &str, request_id: &str, json: Value) -> Result<Response<Value>, Status> {
        let mut request = Request::new(self.message(method, json));
        if !request_id.is_empty() {
            request.metadata_mut().insert("x-request-id", request_id.parse().expect("a metadata value"));
        }
        self.send(method, request).await
    }

    /// Calls a method with a request that is already one.
    pub(crate) async fn send(&self, method: &str, request: Request<DynamicMessage>) -> Result<Response<Value>, Status> {
        let (_, response) = self.types(method);
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.expect("the server can be reached");
        let path = format!("/{method}").parse().expect("a path");
        let answer = grpc.unary(request, path, Dynamic(response)).await?;
        let (metadata, message, extensions) = answer.into_parts();
        let json = serde_json::to_value(&message).expect("the response has a JSON form");
        Ok(Response::from_parts(metadata, json, extensions))
    }

    fn types(&self, method: &str) -> (MessageDescriptor, MessageDescriptor) {
        let (service, name) = method.split_once('/').expect("service/method");
        let service = self.pool.get_service_by_name(service).expect("the service is there");
        let method = service.methods().find(|method| method.name() == name).expect("the method is there");
        (method.input(), method.output())
    }
}
