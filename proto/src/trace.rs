//! W3C trace context of events, and what the spans of server and SDK have in common.
//!
//! Source: W3C "Trace Context" 1, sections 3.2 and 3.3; OpenTelemetry semantic conventions, "RPC" and "Messaging
//! spans". Invariant: what `write` gives, `read` takes; a header that is malformed is no context, never an error.
//!
//! It deliberately starts no span and knows no exporter: `ARCHITECTURE.md` lists the spans and who makes them.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tonic::Code;

/// Reads `traceparent` and `tracestate`. A later version may append fields, which are ignored; a state that cannot be
/// read is left out.
pub fn read(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex =
        |text: &str, len: usize| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !well_formed || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let state = tracestate.and_then(|s| s.parse::<TraceState>().ok()).unwrap_or_default();
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    Some(SpanContext::new(trace, span, flags, true, state)).filter(SpanContext::is_valid)
}

/// The values of `traceparent` and `tracestate`; `None` when the context is none.
pub fn write(context: &SpanContext) -> Option<(String, Option<String>)> {
    if !context.is_valid() {
        return None;
    }
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    Some((parent, Some(context.trace_state().header()).filter(|state| !state.is_empty())))
}

/// Whether a `traceparent` says that it is sampled, from one look at its flags: cheap enough for every event.
pub fn is_sampled(traceparent: &str) -> bool {
    let flags = traceparent.get(53..55).and_then(|f| u8::from_str_radix(f, 16).ok());
    flags.is_some_and(|f| f & 1 == 1)
}

/// The value of `rpc.response.status_code`: a code's name as gRPC writes it.
pub fn status_code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

    #[test]
    fn a_context_that_is_read_is_written_the_same() {
        let parent = format!("{ID}-01");
        let context = read(&parent, Some("a=b,c=d")).expect("a valid header");
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(write(&context), Some((parent, Some("a=b,c=d".to_owned()))));
        assert_eq!(write(&SpanContext::empty_context()), None);
    }

    #[test]
    fn a_malformed_header_is_no_context() {
        let malformed = [
            "",
            "00",
            "00-xyz-abc-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        ];
        for header in malformed {
            assert_eq!(read(header, None), None, "{header}");
        }
        assert!(read("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra", None).is_some());
    }

    #[test]
    fn the_sampled_flag_is_seen_without_reading_the_rest() {
        assert!(is_sampled(&format!("{ID}-01")) && is_sampled(&format!("{ID}-03")));
        for text in [format!("{ID}-00"), format!("{ID}-zz"), ID.to_owned(), String::new()] {
            assert!(!is_sampled(&text), "{text}");
        }
    }
}
