-- The write API made whole: marks of consumed events.
--
-- consumers   a small number for each namespace, consumer and source
-- marks       which consumer has handled which event, and in which request; partitioned by the event's time

create table outbox.consumers (
    id        integer generated always as identity primary key,
    namespace text    not null,
    consumer  text    not null check (octet_length(consumer) between 1 and 128),
    source    text    not null check (source <> ''),
    unique (namespace, consumer, source)
);

-- Narrow, because there is one for each event and consumer. No foreign key to consumers: it would lock the consumer's
-- one row for every mark, and consumers are never deleted. The answer is the one of the request that made the mark,
-- the first of its key that arrived at `marked_at` or later.
create table outbox.marks (
    consumer    integer     not null,
    event_id    uuid        not null,
    event_time  timestamptz not null,
    marked_at   timestamptz not null,
    request_key uuid        not null,
    primary key (consumer, event_id, event_time)
) partition by range (event_time);

-- Claims a request id as `claim_request` does, then marks an event as handled by a consumer, in the running
-- transaction. Raises OB004 when it is marked already, OB005 when it is older than marks are kept.
-- The mark is looked for under a lock on the consumer and the event, whatever time the event is said to have: an event
-- that comes again with another time is the same event. The order of locks is request, then mark, for everyone.
create function outbox.claim_consume(
    p_request_key uuid, p_fingerprint bytea, p_window interval, p_namespace text, p_consumer text, p_source text,
    p_event_id uuid, p_event_time timestamptz, p_consume_window interval
) returns boolean
language plpgsql volatile as $$
declare
    v_consumer integer;
begin
    perform outbox.claim_request(p_request_key, p_fingerprint, p_window);

    select c.id into v_consumer from outbox.consumers c
    where c.namespace = p_namespace and c.consumer = p_consumer and c.source = p_source;
    if not found then
        insert into outbox.consumers (namespace, consumer, source) values (p_namespace, p_consumer, p_source)
        on conflict do nothing;
        select c.id into v_consumer from outbox.consumers c
        where c.namespace = p_namespace and c.consumer = p_consumer and c.source = p_source;
    end if;

    perform pg_advisory_xact_lock(hashtextextended(p_event_id::text, v_consumer));
    perform from outbox.marks m where m.consumer = v_consumer and m.event_id = p_event_id limit 1;
    if found then
        raise exception using errcode = 'OB004', message = 'this consumer has handled this event';
    end if;
    if p_event_time <= clock_timestamp() - p_consume_window then
        raise exception using errcode = 'OB005', message = 'this event is older than marks are kept';
    end if;
    insert into outbox.marks (consumer, event_id, event_time, marked_at, request_key)
    values (v_consumer, p_event_id, p_event_time, clock_timestamp(), p_request_key);
    return true;
end
$$;

-- Makes the partitions of marks, seven days each, for events as old as `p_window` up to the next seven days. Returns
-- how many it made.
create function outbox.make_mark_partitions(p_window interval) returns integer
language plpgsql volatile as $$
declare
    c_week  constant interval := interval '168 hours';
    v_from  timestamptz := date_bin(c_week, clock_timestamp() - p_window, '2024-01-01 00:00:00+00');
    v_until constant timestamptz := clock_timestamp() + c_week;
    v_made  integer := 0;
begin
    -- One maker at a time.
    perform pg_advisory_xact_lock(hashtextextended('outbox.make_partitions', 0));
    while v_from < v_until loop
        v_made := v_made + outbox.make_partition(
            'marks', to_char(v_from at time zone 'UTC', 'YYYYMMDD'), v_from::text, (v_from + c_week)::text)::integer;
        v_from := v_from + c_week;
    end loop;
    return v_made;
end
$$;

select outbox.make_mark_partitions(interval '168 hours');
