//! A caller's parameters into the texts that a statement binds.
//!
//! All wrong parameters are reported together, each by name: missing, unknown, or of a value that its type does not
//! take. Nothing is bound that the command does not declare, and `:namespace` is never the caller's.
//!
//! Not here: what each type takes (`model::value`).

use std::collections::BTreeMap;

use super::Command;
use crate::model::value::{Value, ValueError};

/// How alike two names must be for one to be suggested for the other, on the Jaro-Winkler scale from 0 to 1.
const LIKENESS_MIN: f64 = 0.8;

/// The parameter that the server binds.
pub(super) const NAMESPACE: &str = "namespace";

/// What is wrong with one parameter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParameterError {
    /// The command needs it and the call lacks it.
    #[error("parameter `{name}` is missing; send `null` for SQL NULL")]
    Missing {
        /// The parameter.
        name: String,
    },
    /// The command has no such parameter.
    #[error("the command has no parameter `{name}`{}", suggest(.suggestion.as_deref()))]
    Unknown {
        /// The name in the call.
        name: String,
        /// The parameter probably meant.
        suggestion: Option<String>,
    },
    /// The server binds the namespace itself.
    #[error("parameter `namespace` is bound by the server and cannot be sent")]
    Namespace,
    /// The value does not fit.
    #[error("parameter `{name}` {source}")]
    Value {
        /// The parameter.
        name: String,
        /// What does not fit.
        source: ValueError,
    },
}

impl ParameterError {
    /// The parameter it is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Missing { name } | Self::Unknown { name, .. } | Self::Value { name, .. } => name,
            Self::Namespace => NAMESPACE,
        }
    }
}

impl Command {
    /// The texts for `$1` to `$parameter_count`, in order; none is NULL.
    ///
    /// # Errors
    /// With everything that is wrong, the command's own parameters first.
    pub fn bind(
        &self,
        namespace: &str,
        parameters: &BTreeMap<String, Value>,
    ) -> Result<Vec<Option<String>>, Vec<ParameterError>> {
        let mut texts = Vec::with_capacity(self.parameter_count);
        let mut errors = Vec::new();
        if self.namespace_position.is_some() {
            texts.push(Some(namespace.to_owned()));
        }
        for parameter in &self.parameters {
            let name = || parameter.name.clone();
            match parameters.get(&parameter.name).map(|value| value.to_sql_text(&parameter.ty)) {
                Some(Ok(text)) => texts.push(text),
                Some(Err(source)) => errors.push(ParameterError::Value { name: name(), source }),
                None => errors.push(ParameterError::Missing { name: name() }),
            }
        }
        let declared = |name: &str| self.parameters.iter().any(|parameter| parameter.name == name);
        let undeclared = parameters.keys().filter(|name| !declared(name));
        errors.extend(undeclared.map(|name| self.unknown(name)));
        if errors.is_empty() { Ok(texts) } else { Err(errors) }
    }

    fn unknown(&self, name: &str) -> ParameterError {
        if name == NAMESPACE {
            return ParameterError::Namespace;
        }
        let known = self.parameters.iter().map(|parameter| parameter.name.as_str());
        ParameterError::Unknown { name: name.to_owned(), suggestion: nearest(name, known).map(str::to_owned) }
    }
}

/// The name most like `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

fn suggest(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests;
