//! The operator's own RPCs: methods whose option `(outbox.v1.rpc)` says which commands they run and what they store.
//!
//! The way of a descriptor set (`*.binpb` in the catalog's folder): `option` reads a method's declaration, `declare` holds
//! it against messages and catalog and makes it a `plan`. The way of a call: `call` takes it, `request` makes it a commit's
//! request, which goes the way of every commit, and `response` makes its results a message. `form` says which protobuf
//! type goes with which SQL type, and converts.
//!
//! Invariant: what can be found wrong without a caller's values stops the server at its start.

mod call;
pub mod codec;
mod declare;
mod error;
mod form;
#[cfg(feature = "fuzz")]
mod fuzz;
mod option;
mod path;
mod plan;
mod request;
mod response;

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message as _;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::FileDescriptorSet;
use tonic::service::Routes;

pub(super) use self::call::Caller;
pub use self::error::{Error, Problem};
use self::{call::Call, declare::Against, option::Declaration, plan::Rpc};
use crate::{catalog::Catalog, config};

/// What descriptor sets end in.
const EXTENSION: &str = "binpb";
/// Packages whose services are the server's own.
const TAKEN: [&str; 2] = ["outbox.", "grpc."];

/// All of the operator's RPCs.
#[derive(Debug, Default)]
pub struct Rpcs {
    rpcs: Vec<Arc<Rpc>>,
    services: Vec<String>,
    /// The descriptor sets as they were read, for reflection.
    descriptors: Vec<Vec<u8>>,
}

impl Rpcs {
    /// Reads every `*.binpb` file in `dir` (not in folders below it), by name, and checks what its methods declare.
    ///
    /// # Errors
    /// With every wrong place in all files, or with the first failure to read one.
    pub fn load(dir: &Path, catalog: &Catalog, config: &config::Commit) -> Result<Self, Error> {
        let mut loading = Loading::new(catalog, config);
        for file in files(dir)? {
            let bytes = std::fs::read(&file).map_err(|source| Error::Read { path: file.clone(), source })?;
            loading.file(&file, &bytes);
            loading.rpcs.descriptors.push(bytes);
        }
        if loading.problems.is_empty() { Ok(loading.rpcs) } else { Err(Error::Declared(loading.problems)) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rpcs.len()
    }

    /// The services that have such methods.
    pub(super) fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(String::as_str)
    }

    /// The descriptor sets.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = &[u8]> {
        self.descriptors.iter().map(Vec::as_slice)
    }

    /// A route for each. What these services have no declaration for is answered as any unknown method is.
    pub(super) fn routes(&self, caller: &Arc<Caller>) -> Routes {
        let mut routes = Routes::default();
        for rpc in &self.rpcs {
            let (path, call) = (format!("/{}", rpc.name), Call::new(Arc::clone(rpc), Arc::clone(caller)));
            let router = std::mem::take(routes.axum_router_mut());
            *routes.axum_router_mut() = router.route_service(&path, call);
        }
        routes
    }
}

/// The descriptor sets of a folder, in the order of their names.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What a descriptor set describes.
fn pool(bytes: &[u8]) -> Result<DescriptorPool, String> {
    let hint = "compile it with all its imports, as by `protoc --include_imports --descriptor_set_out`";
    let no_set = |error: &dyn Display| format!("is no whole descriptor set: {error}; {hint}");
    let set = FileDescriptorSet::decode(bytes).map_err(|error| no_set(&error))?;
    // prost-reflect 0.16 panics on any other syntax, editions among them.
    if let Some(file) = set.file.iter().find(|file| !matches!(file.syntax.as_deref(), None | Some("proto2" | "proto3")))
    {
        let (name, syntax) = (file.name(), file.syntax());
        return Err(format!("has a file of syntax {syntax:?}, {name:?}; write it in \"proto3\" or \"proto2\""));
    }
    DescriptorPool::decode(bytes).map_err(|error| no_set(&error))
}

/// What has been read so far.
struct Loading<'a> {
    against: Against<'a>,
    rpcs: Rpcs,
    /// Which file a service is from.
    from: BTreeMap<String, PathBuf>,
    problems: Vec<Problem>,
}

impl<'a> Loading<'a> {
    fn new(catalog: &'a Catalog, config: &'a config::Commit) -> Self {
        let against = Against { catalog, config };
        Self { against, rpcs: Rpcs::default(), from: BTreeMap::new(), problems: Vec::new() }
    }

    fn file(&mut self, file: &Path, bytes: &[u8]) {
        let of_file =
            |message: String| Problem { file: file.to_owned(), method: String::new(), field: String::new(), message };
        let pool = match pool(bytes) {
            Ok(pool) => pool,
            Err(message) => {
                self.problems.push(of_file(message));
                return;
            }
        };
        let mut declared = 0;
        for service in pool.services() {
            declared += self.service(file, &service);
        }
        if declared == 0 {
            self.problems.push(of_file("has no method with the option (outbox.v1.rpc)".into()));
        }
    }

    /// Takes a service's methods. Returns how many have a declaration.
    fn service(&mut self, file: &Path, service: &ServiceDescriptor) -> usize {
        let (mut declared, mut bare) = (0, Vec::new());
        for method in service.methods() {
            let name = format!("{}/{}", service.full_name(), method.name());
            let faults = match option::read(&method) {
                Ok(None) => {
                    bare.push(name);
                    continue;
                }
                Ok(Some(declaration)) => self.method(&method, &declaration),
                Err(message) => vec![(String::new(), message)],
            };
            declared += 1;
            let problems = faults.into_iter().map(|(field, message)| Problem {
                file: file.to_owned(),
                method: name.clone(),
                field,
                message,
            });
            self.problems.extend(problems);
        }
        if declared > 0 {
            self.take(file, service.full_name());
            for method in bare {
                tracing::warn!(method, "has no option (outbox.v1.rpc): calls of it are answered UNIMPLEMENTED");
            }
        }
        declared
    }

    fn method(&mut self, method: &prost_reflect::MethodDescriptor, declaration: &Declaration) -> Vec<(String, String)> {
        match declare::declare(method, declaration, self.against) {
            Ok(rpc) => {
                self.rpcs.rpcs.push(Arc::new(rpc));
                Vec::new()
            }
            Err(faults) => faults.into_iter().map(|fault| (fault.field, fault.description)).collect(),
        }
    }

    /// A service is served once, and never in place of the server's own.
    fn take(&mut self, file: &Path, service: &str) {
        let mut problem = |message: String| {
            let (file, method) = (file.to_owned(), service.to_owned());
            self.problems.push(Problem { file, method, field: String::new(), message });
        };
        if TAKEN.iter().any(|package| service.starts_with(package)) {
            problem("is in a package of the server's own; give it another".into());
        } else if let Some(first) = self.from.get(service) {
            problem(format!("is served from {} already", first.display()));
        } else {
            self.from.insert(service.to_owned(), file.to_owned());
            self.rpcs.services.push(service.to_owned());
        }
    }
}
