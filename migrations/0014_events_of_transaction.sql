-- The events of one transaction in the order of their positions, so that those of a large one can be read page by page.
-- Commits wait while it is built, of a large table for minutes.

create index events_xid_position on outbox.events (xid, position);
drop index outbox.events_xid;
