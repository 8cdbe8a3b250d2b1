-- Gap-free sequences per key, for topics that are asked to have them: so that consumers can tell when something is missing
-- or comes again. They are never the ground for dropping an event.
--
-- sequenced_topics  which topics have them, and the epoch that their numbers belong to
-- sequences         the last number of each namespace, topic and key
--
-- A topic that has none pays nothing: the trigger is there only while some topic has, and its condition names them.
create table outbox.sequenced_topics (
    topic             text   primary key check (topic ~ '^[a-zA-Z0-9._-]{1,249}$'),
    -- Milliseconds since 1970 when it began, so that it is new whatever a restore has forgotten.
    epoch             bigint not null,
    -- Where and in which history its numbers were given out. In another one they may be given out again.
    system_identifier bigint not null,
    timeline          bigint not null
);

create table outbox.sequences (
    namespace text   not null,
    topic     text   not null,
    key_hash  bytea  not null check (octet_length(key_hash) = 32),
    epoch     bigint not null,
    last      bigint not null check (last > 0),
    primary key (namespace, topic, key_hash)
) with (fillfactor = 70);

-- Begins a new epoch of a topic's numbers, and makes the topic have them. Returns the epoch.
create function outbox.begin_sequence_epoch(p_topic text) returns bigint
language sql volatile as $$
    insert into outbox.sequenced_topics as t (topic, epoch, system_identifier, timeline)
    select p_topic, (extract(epoch from clock_timestamp()) * 1000)::bigint, c.system_identifier, outbox.timeline()
    from pg_control_system() c
    on conflict (topic) do update
    set epoch = greatest(excluded.epoch, t.epoch + 1), system_identifier = excluded.system_identifier,
        timeline = excluded.timeline
    returning epoch
$$;

-- Gives an event the next number of its key, in the header `outbox-sequence`: epoch, number and namespace, parted by `/`.
--
-- A number is taken in the event's own transaction, so none is missing when it rolls back. The key's slot is locked
-- already: whoever waits for a key's row here would have waited for its slot before. When the database was restored or
-- failed over, numbers may have been given out that it has forgotten: then a new epoch begins.
create function outbox.number_event() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
declare
    v_topic  outbox.sequenced_topics;
    v_number bigint;
begin
    select * into v_topic from outbox.sequenced_topics t where t.topic = new.topic;
    if not found then
        return new;
    end if;
    if v_topic.timeline <> outbox.timeline()
       or v_topic.system_identifier <> (select c.system_identifier from pg_control_system() c) then
        perform from outbox.sequenced_topics t where t.topic = new.topic for update;
        select * into v_topic from outbox.sequenced_topics t where t.topic = new.topic;
        if v_topic.timeline <> outbox.timeline()
           or v_topic.system_identifier <> (select c.system_identifier from pg_control_system() c) then
            v_topic.epoch := outbox.begin_sequence_epoch(new.topic);
        end if;
    end if;

    insert into outbox.sequences as s (namespace, topic, key_hash, epoch, last)
    values (new.namespace, new.topic, sha256(new.key), v_topic.epoch, 1)
    on conflict (namespace, topic, key_hash) do update
    set last = case when s.epoch = excluded.epoch then s.last + 1 else 1 end, epoch = excluded.epoch
    returning last into v_number;
    new.headers := coalesce(new.headers, '{}')
        || jsonb_build_object('outbox-sequence', v_topic.epoch || '/' || v_number || '/' || new.namespace);
    return new;
end
$$;

-- Makes the trigger fit the topics that have sequences. Locks the events for a moment: the caller sets a short
-- lock_timeout and tries again.
create function outbox.arm_sequences() returns void
language plpgsql volatile as $$
declare
    v_topics text[] := (select array_agg(topic order by topic) from outbox.sequenced_topics);
begin
    drop trigger if exists numbered on outbox.events;
    if v_topics is not null then
        execute format('create trigger numbered before insert on outbox.events
                        for each row when (new.key is not null and new.topic = any (%L))
                        execute function outbox.number_event()', v_topics);
    end if;
end
$$;

-- Gives a topic sequences from now on. Does nothing when it has them. Returns their epoch.
create function outbox.start_sequence(p_topic text) returns bigint
language plpgsql volatile as $$
declare
    v_epoch bigint;
begin
    -- One change at a time.
    perform pg_advisory_xact_lock(hashtextextended('outbox.sequences', 0));
    select t.epoch into v_epoch from outbox.sequenced_topics t where t.topic = p_topic;
    if not found then
        v_epoch := outbox.begin_sequence_epoch(p_topic);
        perform outbox.arm_sequences();
    end if;
    return v_epoch;
end
$$;

-- Takes a topic's sequences away. Returns whether it had them.
create function outbox.stop_sequence(p_topic text) returns boolean
language plpgsql volatile as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('outbox.sequences', 0));
    delete from outbox.sequenced_topics t where t.topic = p_topic;
    if not found then
        return false;
    end if;
    perform outbox.arm_sequences();
    delete from outbox.sequences s where s.topic = p_topic;
    return true;
end
$$;
