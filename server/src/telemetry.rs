//! Logs to standard error, traces over OTLP.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, Telemetry};

/// Why telemetry could not be set up.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Sends what is still buffered when the program ends.
pub struct Guard(Option<SdkTracerProvider>);

/// Sets up logs and traces for the whole process. Call it once, inside a runtime.
///
/// # Errors
/// When the filter or the endpoint cannot be read, or it was called before.
pub fn init(config: &Telemetry) -> Result<Guard, Error> {
    // The database's notices, such as that a schema is there already, are no news unless asked for.
    let targets: Targets = format!("sqlx::postgres::notice=warn,{}", config.log).parse()?;
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let log = match config.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    let provider = (!config.otlp_endpoint.is_empty()).then(|| provider(config)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        opentelemetry::global::set_tracer_provider(provider.clone());
        let ours =
            Targets::new().with_target("outbox_server", LevelFilter::INFO).with_target("outbox_sdk", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("outboxd")).with_location(false).with_filter(ours)
    });
    tracing_subscriber::registry().with(traces).with(log.with_filter(targets)).try_init()?;
    Ok(Guard(provider))
}

fn provider(config: &Telemetry) -> Result<SdkTracerProvider, Error> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(&config.otlp_endpoint).build()?;
    let resource = Resource::builder().with_service_name(config.service_name.clone());
    let resource = resource.with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
        .with_resource(resource.build())
        .build())
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}
