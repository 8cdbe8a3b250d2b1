//! Numbers of scopes, as a claim holds them.
//!
//! Invariant: two scopes never have the same number, and one keeps its own. It deliberately forgets none: there are as
//! many as consumers and sources.

use std::{collections::HashMap, sync::Arc};

#[derive(Debug, Default)]
pub(super) struct Scopes {
    by_consumer: HashMap<Arc<str>, HashMap<Arc<str>, i32>>,
    /// Consumer, source and number of the one that was asked for last: mostly it is the next one, too.
    last: Option<(Arc<str>, Arc<str>, i32)>,
    count: i32,
}

impl Scopes {
    pub(super) fn number(&mut self, consumer: &str, source: &str) -> i32 {
        if let Some((last_consumer, last_source, number)) = &self.last
            && (&**last_consumer, &**last_source) == (consumer, source)
        {
            return *number;
        }
        let known = self.by_consumer.get_key_value(consumer);
        let known = known.and_then(|(consumer, sources)| Some((consumer, sources.get_key_value(source)?)));
        if let Some((consumer, (source, number))) = known {
            self.last = Some((Arc::clone(consumer), Arc::clone(source), *number));
            return *number;
        }
        self.count += 1;
        let sources = self.by_consumer.entry(consumer.into()).or_default();
        sources.insert(source.into(), self.count);
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_keeps_its_number_and_no_other_has_it() {
        let mut scopes = Scopes::default();
        let mut numbers = || {
            let names = [("mailer", "/shop"), ("mailer", "/bank"), ("biller", "/shop"), ("mailer", "/shop")];
            names.map(|(consumer, source)| scopes.number(consumer, source))
        };
        let first = numbers();
        assert_eq!(first, numbers());
        assert!(first[0] == first[3] && first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    }
}
