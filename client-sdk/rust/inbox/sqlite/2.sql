-- Version 2: claims that never came to an end, such as dead letters', are forgotten, too.

create index outbox_inbox_claims_lease_age on outbox_inbox_claims (leased_until) where completed_at is null;
