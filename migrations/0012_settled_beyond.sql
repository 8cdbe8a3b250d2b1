-- What the source `wal` has settled beyond the lanes' progress, which it writes with checkpoints only: so many of the events
-- that no progress has passed are settled.
alter table outbox.stream add column settled_beyond bigint not null default 0 check (settled_beyond >= 0);
