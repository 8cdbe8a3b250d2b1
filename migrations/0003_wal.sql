-- The relay's second source, the write-ahead log.
--
-- stream   one row: which source is in force and which one is wanted, who directs it, and how far the log has been
--          relayed

-- `source` is in force: every lane's progress is moved by it. `desired` is what an operator asked for, or what is left
-- after a fault. `owner` directs a change of source, and while `source` is 'wal' it alone owns the lanes; its writes are
-- compare-and-set on `epoch`.
--
-- `slot` gives every transaction that commits after those that `slot_snapshot` sees. While `source` is 'wal', every
-- commit whose record begins below `lsn` is settled, and so are the first `lsn_index` events of the one that begins
-- there; outbox.progress then holds the last checkpoint: a snapshot that sees nothing but what is settled.
create table outbox.stream (
    one           boolean     primary key default true check (one),
    source        text        not null default 'poll' check (source in ('poll', 'wal')),
    desired       text        not null default 'poll' check (desired in ('poll', 'wal')),
    owner         uuid        references outbox.relays (instance) on delete set null,
    epoch         bigint      not null default 0,
    slots_made    bigint      not null default 0,
    slot          text,
    slot_snapshot pg_snapshot,
    lsn           pg_lsn,
    lsn_index     bigint      check (lsn_index >= 0),
    -- Why the desired source is not in force, or why another one than was asked for is desired.
    note          text,
    changed_at    timestamptz not null default clock_timestamp(),
    check ((slot is null) = (slot_snapshot is null) and (slot is null) = (lsn is null)
           and (slot is null) = (lsn_index is null)),
    check (source = 'poll' or slot is not null)
) with (fillfactor = 50);
insert into outbox.stream default values;

-- The history that the server goes on from: promoting a standby begins a new one, and so does restoring to an earlier
-- time. Fails on a standby.
create function outbox.timeline() returns bigint
language sql volatile as $$
    select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint
$$;

-- Progress is trusted in this history only: in another one its transaction ids may have been given out again.
alter table outbox.identity add timeline bigint;
update outbox.identity set timeline = outbox.timeline();
alter table outbox.identity alter timeline set not null;
