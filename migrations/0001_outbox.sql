-- The outbox's own schema. Identity, partitioning, positions, progress and request ids are fixed here.
--
-- events      insert-only, partitioned by UUIDv7 id; each row has its top-level transaction, lane and position
-- key_slots   one row per hash class of keys; locking it makes positions follow commit order for each key
-- requests    one row per applied commit: its fingerprint and its answer, partitioned by arrival
-- progress    per lane, what the relay has settled, and who may say so
-- relays      the running relays and until when each holds its lanes

create schema if not exists outbox;

-- What this database was set up as. The relay compares `system_identifier` before it trusts `progress`:
-- transaction ids mean nothing in another cluster.
create table outbox.identity (
    one               boolean primary key default true check (one),
    system_identifier bigint  not null,
    lanes             integer not null check (lanes > 0),
    slots             integer not null check (slots % lanes = 0)
);
insert into outbox.identity (system_identifier, lanes, slots)
select system_identifier, 64, 8192 from pg_control_system();

create table outbox.key_slots (
    slot integer primary key
);
insert into outbox.key_slots select generate_series(0, 8191);

-- No cache: a position must be greater than every one taken before it, whichever session took it.
create sequence outbox.positions as bigint cache 1;

create table outbox.events (
    id           uuid        not null,
    namespace    text        not null check (octet_length(namespace) between 1 and 64),
    lane         smallint    not null,
    position     bigint      not null,
    xid          xid8        not null,
    topic        text        not null check (topic ~ '^[a-zA-Z0-9._-]{1,249}$'),
    key          bytea,
    source       text        not null check (source <> ''),
    type         text        not null check (type <> ''),
    subject      text,
    data         bytea,
    content_type text,
    -- Free headers by name; the names of the record's own are refused, or a consumer would read a false id.
    headers      jsonb       check (jsonb_typeof(headers) = 'object'
                                    and not headers ?| array['', 'content-type', 'traceparent', 'tracestate']
                                    and not headers @? '$.keyvalue().key ? (@ starts with "ce_")'),
    time         timestamptz not null,
    traceparent  text,
    tracestate   text,
    primary key (id)
) partition by range (id);
-- The relay pages through a snapshot's events by position; lane and xid let it pass over rows without the heap.
create index events_position on outbox.events (position, lane, xid);
-- The relay looks up the transactions that an earlier snapshot saw as still open.
create index events_xid on outbox.events (xid);

create table outbox.requests (
    request_key uuid        not null,
    arrived_at  timestamptz not null,
    namespace   text        not null,
    request_id  text        not null check (char_length(request_id) between 1 and 128),
    fingerprint bytea       not null check (octet_length(fingerprint) = 32),
    results     text        not null,
    event_ids   uuid[]      not null,
    primary key (request_key, arrived_at)
) partition by range (arrived_at);

create table outbox.relays (
    instance    uuid        primary key,
    host        text        not null,
    started_at  timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null
);

-- A lane is settled up to `snapshot`: every event that it sees is acknowledged by Kafka. While the relay works
-- through what `target` sees beyond it, `position` is the last settled place of the lane within that range.
-- `floor` is below the position of every event whose transaction's id is not below the snapshot's xmax. That is more
-- than those that began later: xmax follows the newest *completed* transaction, so a running one may lie beyond it.
create table outbox.progress (
    lane            smallint    primary key,
    owner           uuid        references outbox.relays (instance) on delete set null,
    epoch           bigint      not null default 0,
    snapshot        pg_snapshot not null,
    floor           bigint      not null,
    target          pg_snapshot,
    target_floor    bigint,
    position        bigint,
    updated_at      timestamptz not null default clock_timestamp(),
    check ((target is null) = (target_floor is null) and (target is null) = (position is null))
) with (fillfactor = 50);
insert into outbox.progress (lane, snapshot, floor)
select lane, pg_current_snapshot(), 0 from generate_series(0, 63) as lane;

-- The hash class of a key. sha256, so that it is the same in every version and language.
create function outbox.slot_of(namespace text, topic text, key bytea) returns integer
language sql stable parallel safe as $$
    select (get_byte(h, 0) << 5) | (get_byte(h, 1) >> 3)
    from (select sha256(convert_to(namespace, 'UTF8') || '\x00' || convert_to(topic, 'UTF8') || '\x00' || key) as h) as hashed
$$;

-- A moment as the first six bytes of a UUIDv7: milliseconds since the epoch.
create function outbox.uuidv7_time(moment timestamptz) returns bytea
language sql immutable parallel safe as $$
    select substring(int8send(floor(extract(epoch from moment) * 1000)::bigint) from 3)
$$;

-- The smallest UUIDv7 of a moment: the bound of partitions and of time ranges over ids.
create function outbox.uuidv7_floor(moment timestamptz) returns uuid
language sql immutable parallel safe as $$
    select encode(outbox.uuidv7_time(moment) || '\x70008000000000000000', 'hex')::uuid
$$;

-- A random UUIDv4 turned into a UUIDv7: the time in front, and the two version bits that differ.
create function outbox.uuidv7() returns uuid
language sql volatile parallel safe as $$
    select encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid()) placing outbox.uuidv7_time(clock_timestamp()) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

-- Claims a request id for the running transaction: waits for any other transaction that has claimed it, then looks
-- for its answer. Raises OB001 when the id has been answered, OB002 when it was used with another body.
-- Each statement of a volatile function sees what was committed before it began, so the look-up sees what the
-- wait was for.
create function outbox.claim_request(p_request_key uuid, p_fingerprint bytea, p_window interval) returns boolean
language plpgsql volatile as $$
declare
    v_since       timestamptz := clock_timestamp() - p_window;
    v_fingerprint bytea;
begin
    perform pg_advisory_xact_lock(('x' || substr(replace(p_request_key::text, '-', ''), 17))::bit(64)::bigint);
    select r.fingerprint into v_fingerprint
    from outbox.requests r
    where r.request_key = p_request_key and r.arrived_at > v_since
    limit 1;
    if not found then
        return true;
    end if;
    if v_fingerprint <> p_fingerprint then
        raise exception using errcode = 'OB002', message = 'this request id was used with another body';
    end if;
    raise exception using errcode = 'OB001', message = 'this request id has been answered';
end
$$;

-- Stores events in the running transaction. Arrays run in parallel, one element per event. Must be the last thing
-- that the transaction waits for: it holds the slots of its keys until the end.
create function outbox.append_events(
    p_namespace text, p_ids uuid[], p_topics text[], p_keys bytea[], p_sources text[], p_types text[],
    p_subjects text[], p_data bytea[], p_content_types text[], p_headers jsonb[], p_times timestamptz[],
    p_traceparents text[], p_tracestates text[]
) returns void
language plpgsql volatile as $$
declare
    -- Before any position is taken: a transaction that has none yet is not in a snapshot, and so would take a
    -- position that the snapshot's floor does not bound.
    v_xid   xid8 := pg_current_xact_id();
    v_slots integer[];
begin
    select array_agg(outbox.slot_of(p_namespace, e.topic, e.key) order by e.n) into v_slots
    from unnest(p_topics, p_keys) with ordinality as e (topic, key, n);

    perform from outbox.key_slots k where k.slot = any (v_slots) order by k.slot for update;

    insert into outbox.events (id, namespace, lane, position, xid, topic, key, source, type, subject, data,
                               content_type, headers, time, traceparent, tracestate)
    select e.id, p_namespace, coalesce(e.slot, get_byte(uuid_send(e.id), 15)) % 64, nextval('outbox.positions'), v_xid,
           e.topic, e.key, e.source, e.type, e.subject, e.data, e.content_type, e.headers, e.time, e.traceparent,
           e.tracestate
    from (
        select * from unnest(p_ids, v_slots, p_topics, p_keys, p_sources, p_types, p_subjects, p_data,
                             p_content_types, p_headers, p_times, p_traceparents, p_tracestates)
            with ordinality as u (id, slot, topic, key, source, type, subject, data, content_type, headers, time,
                                  traceparent, tracestate, n)
        order by n
    ) as e;
end
$$;

-- Ends a commit: holds each operation's row count against what its command expects, stores the events, then the
-- answer. `p_results` is a JSON array with one object per operation, each with `rows_affected`. Returns the answer
-- and the time it is stored under. Raises OB003 with the operation's index, expectation and count in its detail.
create function outbox.finish_request(
    p_request_key uuid, p_namespace text, p_request_id text, p_fingerprint bytea,
    p_results json, p_rows_min bigint[], p_rows_max bigint[],
    p_ids uuid[], p_topics text[], p_keys bytea[], p_sources text[], p_types text[],
    p_subjects text[], p_data bytea[], p_content_types text[], p_headers jsonb[], p_times timestamptz[],
    p_traceparents text[], p_tracestates text[],
    out results text, out committed_at timestamptz
) returns record
language plpgsql volatile as $$
declare
    v_rows bigint;
begin
    for i in 1 .. cardinality(p_rows_min) loop
        v_rows := (p_results -> (i - 1) ->> 'rows_affected')::bigint;
        if v_rows < p_rows_min[i] or v_rows > p_rows_max[i] then
            raise exception using errcode = 'OB003',
                message = 'an operation changed or returned an unexpected number of rows',
                detail = json_build_object('operation', i - 1, 'rows', v_rows,
                                           'min', p_rows_min[i], 'max', p_rows_max[i])::text;
        end if;
    end loop;

    if cardinality(p_ids) > 0 then
        perform outbox.append_events(p_namespace, p_ids, p_topics, p_keys, p_sources, p_types, p_subjects, p_data,
                                     p_content_types, p_headers, p_times, p_traceparents, p_tracestates);
    end if;

    results := p_results::text;
    committed_at := clock_timestamp();
    insert into outbox.requests (request_key, arrived_at, namespace, request_id, fingerprint, results, event_ids)
    values (p_request_key, committed_at, p_namespace, p_request_id, p_fingerprint, results, p_ids);
end
$$;

-- For a service that holds its own transaction in this database: stores one event in it, and returns its id.
-- Call it last: it holds the key's slot until the transaction ends.
create function outbox.emit_bytes(
    topic text, type text, data bytea, key bytea default null, source text default 'outbox', subject text default null,
    content_type text default 'application/octet-stream', headers jsonb default null, namespace text default 'default',
    id uuid default null, traceparent text default null, tracestate text default null
) returns uuid
language plpgsql volatile as $$
declare
    v_id uuid := coalesce(id, outbox.uuidv7());
begin
    perform outbox.append_events(
        namespace, array[v_id], array[topic], array[key], array[source], array[type], array[subject], array[data],
        array[case when data is not null then content_type end], array[headers], array[clock_timestamp()],
        array[traceparent], array[tracestate]);
    return v_id;
end
$$;

-- The same with a JSON payload and a text key.
create function outbox.emit(
    topic text, type text, data jsonb, key text default null, source text default 'outbox', subject text default null,
    headers jsonb default null, namespace text default 'default', id uuid default null,
    traceparent text default null, tracestate text default null
) returns uuid
language sql volatile as $$
    select outbox.emit_bytes(topic, type, convert_to(data::text, 'UTF8'), convert_to(key, 'UTF8'), source, subject,
                             'application/json', headers, namespace, id, traceparent, tracestate)
$$;

-- Stores several events in the caller's transaction, locking their keys' slots in one order, so that two callers
-- cannot block each other for good. `events` is a JSON array of objects with `topic`, `type` and any of `data`
-- (any JSON) or `data_base64`, `key` (text) or `key_base64`, `source`, `subject`, `content_type`, `headers`, `id`,
-- `traceparent`, `tracestate`. Returns the ids in the array's order.
create function outbox.emit_many(events jsonb, namespace text default 'default') returns setof uuid
language plpgsql volatile as $$
declare
    v_events record;
begin
    select array_agg(coalesce((e ->> 'id')::uuid, outbox.uuidv7()) order by n) as ids,
           array_agg(e ->> 'topic' order by n) as topics,
           array_agg(coalesce(decode(e ->> 'key_base64', 'base64'), convert_to(e ->> 'key', 'UTF8')) order by n) as keys,
           array_agg(coalesce(e ->> 'source', 'outbox') order by n) as sources,
           array_agg(e ->> 'type' order by n) as types,
           array_agg(e ->> 'subject' order by n) as subjects,
           array_agg(coalesce(decode(e ->> 'data_base64', 'base64'), convert_to((e -> 'data')::text, 'UTF8')) order by n) as data,
           array_agg(case when e ? 'data' then coalesce(e ->> 'content_type', 'application/json')
                          when e ? 'data_base64' then coalesce(e ->> 'content_type', 'application/octet-stream') end
                     order by n) as content_types,
           array_agg(e -> 'headers' order by n) as headers,
           array_agg(clock_timestamp() order by n) as times,
           array_agg(e ->> 'traceparent' order by n) as traceparents,
           array_agg(e ->> 'tracestate' order by n) as tracestates
    into v_events
    from jsonb_array_elements(events) with ordinality as a (e, n);

    if v_events.ids is null then
        return;
    end if;
    perform outbox.append_events(
        namespace, v_events.ids, v_events.topics, v_events.keys, v_events.sources, v_events.types, v_events.subjects,
        v_events.data, v_events.content_types, v_events.headers, v_events.times, v_events.traceparents,
        v_events.tracestates);
    return query select unnest(v_events.ids);
end
$$;

-- Whether a lane's progress has passed an event.
create function outbox.is_settled(event outbox.events) returns boolean
language sql stable as $$
    select pg_visible_in_snapshot(event.xid, p.snapshot)
        or (p.target is not null and event.position <= p.position and pg_visible_in_snapshot(event.xid, p.target))
    from outbox.progress p
    where p.lane = event.lane
$$;

-- Makes one partition, unless it is there. Built standalone and then attached: creating it in place would block every
-- insert for as long as one reader is open. The caller sets a short lock_timeout and tries again.
create function outbox.make_partition(parent text, suffix text, lower_bound text, upper_bound text) returns boolean
language plpgsql volatile as $$
declare
    v_name text := parent || '_p' || suffix;
begin
    if to_regclass(format('outbox.%I', v_name)) is not null then
        return false;
    end if;
    execute format('create table outbox.%I (like outbox.%I including defaults including constraints including indexes)',
                   v_name, parent);
    execute format('alter table outbox.%I attach partition outbox.%I for values from (%L) to (%L)',
                   parent, v_name, lower_bound, upper_bound);
    return true;
end
$$;

-- Makes the partitions of events, one a day in UTC, from yesterday (a caller's id may lie before midnight) until
-- `days_ahead` days from now, and those of requests, one for each seven days, for this span and the next: few and
-- wide, because every claim looks into each live one. Returns how many it made.
create function outbox.make_partitions(days_ahead integer) returns integer
language plpgsql volatile as $$
declare
    c_week constant interval := interval '168 hours';
    v_made integer := 0;
    v_from timestamptz;
begin
    -- One maker at a time.
    perform pg_advisory_xact_lock(hashtextextended('outbox.make_partitions', 0));
    for n in -1 .. days_ahead loop
        v_from := date_trunc('day', clock_timestamp(), 'UTC') + n * interval '24 hours';
        v_made := v_made + outbox.make_partition(
            'events', to_char(v_from at time zone 'UTC', 'YYYYMMDD'),
            outbox.uuidv7_floor(v_from)::text, outbox.uuidv7_floor(v_from + interval '24 hours')::text)::integer;
    end loop;
    for n in 0 .. 1 loop
        v_from := date_bin(c_week, clock_timestamp(), '2024-01-01 00:00:00+00') + n * c_week;
        v_made := v_made + outbox.make_partition(
            'requests', to_char(v_from at time zone 'UTC', 'YYYYMMDD'),
            v_from::text, (v_from + c_week)::text)::integer;
    end loop;
    return v_made;
end
$$;

select outbox.make_partitions(7);
