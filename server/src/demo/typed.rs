//! The story's part about RPCs of one's own: the sample's `shop.v1.Users/Activate`, called as any generated client would,
//! which knows nothing of the outbox.

use std::time::Duration;

use outbox_sdk::Disposition;
use serde_json::json;
use tonic::{Request, Response, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::{Failure, World, crash, report::Report};

const METHOD: &str = "/shop.v1.Users/Activate";
const TIMEOUT: Duration = Duration::from_secs(10);

/// `shop.v1.ActivateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct ActivateRequest {
    #[prost(string, tag = "1")]
    user_id: String,
}

/// `shop.v1.User`.
#[derive(Clone, PartialEq, prost::Message)]
struct User {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    email: String,
    #[prost(enumeration = "UserStatus", tag = "3")]
    status: i32,
    #[prost(message, optional, tag = "4")]
    activated_at: Option<prost_types::Timestamp>,
}

/// `shop.v1.UserStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum UserStatus {
    Unspecified = 0,
    Pending = 1,
    Active = 2,
}

pub(super) async fn call(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("typed", "An RPC of one's own, shop.v1.Users/Activate, and its retry: state and event, once");
    let user_id = crash::buyers(&world.run).next().ok_or("the demo has buyers")?;
    let request_id = format!("activate-{user_id}");
    let first = activate(world, &user_id, &request_id).await?;
    let again = activate(world, &user_id, &request_id).await?;
    let told = |answer: &Response<User>| {
        let disposition = answer.metadata().get("x-outbox-disposition").and_then(|value| value.to_str().ok());
        disposition.unwrap_or_default().to_owned()
    };
    let status = first.get_ref().status();
    let events = "select count(*) from outbox.events where topic = 'users' and type = 'user.activated' and key = $1";
    let events: i64 = sqlx::query_scalar(events).bind(user_id.as_bytes()).fetch_one(&world.shop).await?;
    report.saw("answers", json!([told(&first), told(&again)]));
    report.saw("user", json!({"id": first.get_ref().id, "status": format!("{status:?}")}));
    report.saw("events_stored", events);
    let dispositions = [Disposition::Applied, Disposition::Replayed].map(|it| format!("{it:?}").to_uppercase());
    report.check("the first call was applied, the second replayed", [told(&first), told(&again)] == dispositions);
    report.check("both got the same response", first.get_ref() == again.get_ref() && status == UserStatus::Active);
    report.check("one event was stored", events == 1);
    Ok(())
}

async fn activate(world: &World, user_id: &str, request_id: &str) -> Result<Response<User>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{}", world.config.grpc.listen))?;
    let mut client = Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let mut request = Request::new(ActivateRequest { user_id: user_id.to_owned() });
    request.set_timeout(TIMEOUT);
    request.metadata_mut().insert("x-request-id", request_id.parse()?);
    let codec: ProstCodec<ActivateRequest, User> = ProstCodec::default();
    let answer: Result<Response<User>, Status> = client.unary(request, METHOD.parse()?, codec).await;
    Ok(answer?)
}
