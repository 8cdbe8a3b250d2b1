//! Puts the layers together: defaults < file < environment < flags.

use std::path::PathBuf;

use figment::{
    Figment,
    error::Kind,
    providers::{Env, Format as _, Serialized, Toml},
    value::Value,
};

use super::Config;

const ENVIRONMENT_PREFIX: &str = "OUTBOXD_";

/// Where the layers above the defaults come from.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// `key=value` pairs of the command line; keys as `database.url`.
    pub flags: Vec<(String, String)>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was named is not there.
    #[error("the configuration file {} does not exist", .0.display())]
    NoFile(PathBuf),
    /// A layer cannot be read, or does not fit. One message for each fault.
    #[error("the configuration does not hold:\n{}", .0.iter().map(|fault| format!("  - {fault}")).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<String>),
}

impl Layers {
    /// Reads every layer and checks the outcome. Reads files and the environment, and opens nothing else.
    ///
    /// # Errors
    /// Every fault, with the key and where it was set.
    pub fn load(&self) -> Result<Config, Error> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(file) = &self.file {
            if !file.is_file() {
                return Err(Error::NoFile(file.clone()));
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        figment = figment.merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__"));
        for (key, value) in &self.flags {
            // A value reads as TOML where it can, so that numbers are numbers; anything else is text.
            let value: Value = value.parse().unwrap_or_else(|never| match never {});
            figment = figment.merge(Serialized::from(value, "default").key(key));
        }
        let config: Config =
            figment.extract().map_err(|error| Error::Faults(error.into_iter().map(|error| fault(&error)).collect()))?;
        let faults = config.verify();
        if faults.is_empty() { Ok(config) } else { Err(Error::Faults(faults)) }
    }
}

fn fault(error: &figment::Error) -> String {
    let path = error.path.join(".");
    let place = error.metadata.as_ref().map(|metadata| match &metadata.source {
        Some(source) => format!(" (in {source})"),
        None => format!(" (in {})", metadata.name),
    });
    let place = place.unwrap_or_default();
    match &error.kind {
        Kind::UnknownField(field, expected) => {
            let near = expected.iter().max_by(|a, b| likeness(field, a).total_cmp(&likeness(field, b)));
            let hint = match near.filter(|near| likeness(field, near) > 0.7) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("expected one of {}", expected.join(", ")),
            };
            format!("unknown key `{path}`{place}: {hint}")
        }
        kind => format!("`{path}`{place}: {kind}"),
    }
}

fn likeness(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}
