-- The write API made whole: marks of consumed events, and documents.
--
-- consumers   a small number for each namespace, consumer and source
-- marks       which consumer has handled which event, and in which request; partitioned by the event's time
-- documents   versioned JSON values by collection and id
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

-- Documents: versioned JSON values by collection and id.
--
-- Versions come from one sequence, so that none is used twice: not by another document, and not by one that is put
-- again after it was deleted. A caller who compares versions can never take a new document for the old one.
create sequence outbox.document_versions as bigint cache 1;

create table outbox.documents (
    namespace  text        not null,
    collection text        not null check (octet_length(collection) between 1 and 128),
    -- By bytes, so that lists have one order, whatever the database's language, and a prefix is a range of it.
    id         text        not null collate "C" check (octet_length(id) between 1 and 512),
    version    bigint      not null,
    value      jsonb       not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (namespace, collection, id)
);

-- The document as it is when the running transaction holds its name: locked by name, so that one that does not exist
-- can be locked too. Holds it against the precondition: OB006 when its version is not `p_version`, OB007 when it must
-- exist and does not, OB008 when it must not and does; each with the actual version in its detail.
create function outbox.lock_document(
    p_namespace text, p_collection text, p_id text, p_version bigint, p_exists boolean
) returns outbox.documents
language plpgsql volatile as $$
declare
    v_document outbox.documents;
begin
    perform pg_advisory_xact_lock(hashtextextended(p_namespace || E'\n' || p_collection || E'\n' || p_id, 0));
    select * into v_document from outbox.documents d
    where d.namespace = p_namespace and d.collection = p_collection and d.id = p_id;
    if p_version is not null and v_document.version is distinct from p_version then
        raise exception using errcode = 'OB006', message = 'the document has another version',
            detail = coalesce(v_document.version, 0)::text;
    elsif p_exists and v_document.version is null then
        raise exception using errcode = 'OB007', message = 'the document does not exist', detail = '0';
    elsif not p_exists and v_document.version is not null then
        raise exception using errcode = 'OB008', message = 'the document exists already',
            detail = v_document.version::text;
    end if;
    return v_document;
end
$$;

-- Holds a document against a precondition, and keeps it as it is until the transaction ends.
create function outbox.check_document(
    p_namespace text, p_collection text, p_id text, p_version bigint, p_exists boolean
) returns table (version bigint, value jsonb)
language plpgsql volatile as $$
declare
    v_document outbox.documents := outbox.lock_document(p_namespace, p_collection, p_id, p_version, p_exists);
begin
    if v_document.version is not null then
        return query select v_document.version, v_document.value;
    end if;
end
$$;

-- Stores a document, new or in the place of what is there. OB009 when it is larger than `p_bytes_max`.
create function outbox.put_document(
    p_namespace text, p_collection text, p_id text, p_version bigint, p_exists boolean, p_value jsonb,
    p_bytes_max integer
) returns table (version bigint, value jsonb)
language plpgsql volatile as $$
begin
    perform outbox.lock_document(p_namespace, p_collection, p_id, p_version, p_exists);
    if octet_length(p_value::text) > p_bytes_max then
        raise exception using errcode = 'OB009', message = 'the document is too large',
            detail = octet_length(p_value::text)::text;
    end if;
    return query
    insert into outbox.documents as d (namespace, collection, id, version, value, created_at, updated_at)
    values (p_namespace, p_collection, p_id, nextval('outbox.document_versions'), p_value, clock_timestamp(),
            clock_timestamp())
    on conflict on constraint documents_pkey do update
    set version = excluded.version, value = excluded.value, updated_at = excluded.updated_at
    returning d.version, d.value;
end
$$;

-- RFC 7396, section 2: members of the patch replace those of the target, null removes them, and what is no object
-- replaces the whole.
create function outbox.merge_patch(target jsonb, patch jsonb) returns jsonb
language plpgsql immutable parallel safe as $$
declare
    v_result jsonb := case when jsonb_typeof(target) = 'object' then target else '{}' end;
    v_name   text;
    v_value  jsonb;
begin
    if jsonb_typeof(patch) is distinct from 'object' then
        return patch;
    end if;
    for v_name, v_value in select * from jsonb_each(patch) loop
        if jsonb_typeof(v_value) = 'null' then
            v_result := v_result - v_name;
        else
            v_result := v_result || jsonb_build_object(v_name, outbox.merge_patch(v_result -> v_name, v_value));
        end if;
    end loop;
    return v_result;
end
$$;

-- Changes a document by a merge patch; one that does not exist is made from an empty object.
create function outbox.merge_document(
    p_namespace text, p_collection text, p_id text, p_version bigint, p_exists boolean, p_patch jsonb,
    p_bytes_max integer
) returns table (version bigint, value jsonb)
language plpgsql volatile as $$
declare
    v_document outbox.documents := outbox.lock_document(p_namespace, p_collection, p_id, p_version, p_exists);
begin
    return query select * from outbox.put_document(
        p_namespace, p_collection, p_id, null, null, outbox.merge_patch(v_document.value, p_patch), p_bytes_max);
end
$$;

-- Removes a document. Returns what it was; no row when there was none.
create function outbox.delete_document(
    p_namespace text, p_collection text, p_id text, p_version bigint, p_exists boolean
) returns table (version bigint, value jsonb)
language plpgsql volatile as $$
begin
    perform outbox.lock_document(p_namespace, p_collection, p_id, p_version, p_exists);
    return query
    delete from outbox.documents d
    where d.namespace = p_namespace and d.collection = p_collection and d.id = p_id
    returning d.version, d.value;
end
$$;
