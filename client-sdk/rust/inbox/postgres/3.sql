-- Version 3: claims that never came to an end, such as dead letters', are forgotten, too.

create index if not exists claims_lease_age on outbox_inbox.claims using brin (leased_until);
