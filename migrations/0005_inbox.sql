-- The inbox: leases on events, for consumers whose effects no transaction of theirs can hold.
--
-- claims   who is handling which event, or what came of it; partitioned by the event's time, as marks are
create table outbox.claims (
    -- As in marks: a number of outbox.consumers.
    consumer     integer     not null,
    event_id     uuid        not null,
    event_time   timestamptz not null,
    content_hash bytea       check (octet_length(content_hash) between 1 and 32),
    token        uuid        not null,
    attempts     integer     not null check (attempts > 0),
    leased_until timestamptz not null,
    completed_at timestamptz,
    result       bytea,
    primary key (consumer, event_id, event_time),
    check ((completed_at is null) = (result is null))
) partition by range (event_time);
-- What is not completed is counted; extending a lease does not touch this index.
create index claims_open on outbox.claims (event_time) where completed_at is null;

-- The number of a consumer and a source in a namespace, made when it is new.
create function outbox.consumer_number(p_namespace text, p_consumer text, p_source text) returns integer
language plpgsql volatile as $$
declare
    v_id integer;
begin
    select c.id into v_id from outbox.consumers c
    where c.namespace = p_namespace and c.consumer = p_consumer and c.source = p_source;
    if not found then
        insert into outbox.consumers (namespace, consumer, source) values (p_namespace, p_consumer, p_source)
        on conflict do nothing;
        select c.id into v_id from outbox.consumers c
        where c.namespace = p_namespace and c.consumer = p_consumer and c.source = p_source;
    end if;
    return v_id;
end
$$;

-- Claims an event. `outcome` is granted, completed, held, conflict or too_old.
--
-- The claim is looked for under a lock on the consumer and the event, whatever time the event is said to have, so that of
-- two claims one is granted; its row is locked too, unless it is completed, so that whoever is just extending or
-- completing it goes first. A claim under the token that holds the lease is the same claim again. Time is the clock's, not
-- the transaction's: who waited must not decide by the time at which it began.
create function outbox.claim_event(
    p_namespace text, p_consumer text, p_source text, p_event_id uuid, p_event_time timestamptz, p_content_hash bytea,
    p_token uuid, p_lease interval, p_window interval,
    out outcome text, out attempt integer, out left_ms bigint, out result bytea, out completed_at timestamptz
) returns record
language plpgsql volatile as $$
declare
    v_consumer integer := outbox.consumer_number(p_namespace, p_consumer, p_source);
    v_claim    outbox.claims;
    v_now      timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended(p_event_id::text, v_consumer));
    select * into v_claim from outbox.claims c where c.consumer = v_consumer and c.event_id = p_event_id;
    if v_claim.token is not null and v_claim.completed_at is null then
        select * into v_claim from outbox.claims c where c.consumer = v_consumer and c.event_id = p_event_id for update;
    end if;
    v_now := clock_timestamp();

    if v_claim.token is null then
        if p_event_time <= v_now - p_window then
            outcome := 'too_old';
            return;
        end if;
        insert into outbox.claims (consumer, event_id, event_time, content_hash, token, attempts, leased_until)
        values (v_consumer, p_event_id, coalesce(p_event_time, v_now), p_content_hash, p_token, 1, v_now + p_lease);
        outcome := 'granted';
        attempt := 1;
    elsif v_claim.content_hash <> p_content_hash then
        outcome := 'conflict';
    elsif v_claim.completed_at is not null then
        outcome := 'completed';
        result := v_claim.result;
        completed_at := v_claim.completed_at;
    elsif v_claim.leased_until > v_now and v_claim.token <> p_token then
        outcome := 'held';
        left_ms := ceil(extract(epoch from v_claim.leased_until - v_now) * 1000)::bigint;
    else
        outcome := 'granted';
        attempt := v_claim.attempts + (v_claim.token <> p_token)::integer;
        update outbox.claims c
        set token = p_token, attempts = attempt, leased_until = v_now + p_lease,
            content_hash = coalesce(c.content_hash, p_content_hash)
        where c.consumer = v_consumer and c.event_id = p_event_id;
    end if;
end
$$;

-- Does something with a claim under its present token, unless it is completed: extends its lease, or ends it (a lease
-- of no length). False when the lease is another's.
create function outbox.extend_claim(
    p_namespace text, p_consumer text, p_source text, p_event_id uuid, p_token uuid, p_lease interval
) returns boolean
language sql volatile as $$
    with extended as (
        update outbox.claims c set leased_until = clock_timestamp() + p_lease
        from outbox.consumers k
        where k.namespace = p_namespace and k.consumer = p_consumer and k.source = p_source
          and c.consumer = k.id and c.event_id = p_event_id and c.token = p_token and c.completed_at is null
        returning 1
    )
    select exists (select from extended)
$$;

-- Stores the result of a claim under its present token. Done again, it changes nothing and is true: the first answer may
-- have been lost.
create function outbox.complete_claim(
    p_namespace text, p_consumer text, p_source text, p_event_id uuid, p_token uuid, p_result bytea
) returns boolean
language sql volatile as $$
    with completed as (
        update outbox.claims c
        set completed_at = coalesce(c.completed_at, clock_timestamp()), result = coalesce(c.result, p_result)
        from outbox.consumers k
        where k.namespace = p_namespace and k.consumer = p_consumer and k.source = p_source
          and c.consumer = k.id and c.event_id = p_event_id and c.token = p_token
        returning 1
    )
    select exists (select from completed)
$$;

-- Makes the partitions of a table that is partitioned by its events' time, seven days each, for events as old as
-- `p_window` up to the next seven days. Returns how many it made.
create function outbox.make_week_partitions(p_parent text, p_window interval) returns integer
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
            p_parent, to_char(v_from at time zone 'UTC', 'YYYYMMDD'), v_from::text, (v_from + c_week)::text)::integer;
        v_from := v_from + c_week;
    end loop;
    return v_made;
end
$$;

-- Marks are made by the same.
drop function outbox.make_mark_partitions(interval);

select outbox.make_week_partitions('claims', interval '168 hours');
