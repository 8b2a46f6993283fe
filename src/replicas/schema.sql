-- Everything that the replicas of one makegate share. `makegate replicas init` carries this out as often as it likes.

create schema if not exists mg;

-- Hard state: logged, and committed synchronously.

create table if not exists mg.about (
  one bool primary key default true check (one), key_sha256 bytea not null,
  version int not null,               -- of this schema
  works_with int not null default 1); -- makegates that were made for this version or a newer one can use it

create table if not exists mg.replica (
  name text primary key, incarnation uuid not null, joined timestamptz not null, left_at timestamptz,
  lease_ms bigint not null);          -- the others count with the longest of all leases

create table if not exists mg.write (
  id uuid primary key, request text not null,
  sender text not null,               -- the replica whose log has its intent
  replica text not null,              -- the one that sends it or looks after it
  incarnation uuid not null, caller text not null,
  operation text not null, organization bigint, path text not null, fingerprint bytea not null, key bytea, marks text,
  time timestamptz not null,
  state "char" not null default 'u',  -- u under way, d in doubt, e ended, n not sent (and nothing is left to remember)
  done bool, status smallint, head bytea, body bytea, ended timestamptz,
  settled_by text, settled_at text, note text, upstream_status int);
create unique index if not exists write_key on mg.write (key) where key is not null and state <> 'n';
create unique index if not exists write_request on mg.write (request) where state in ('u', 'd');
create index if not exists write_doubt on mg.write (caller, fingerprint) where state = 'd';
create index if not exists write_open on mg.write (replica) where state in ('u', 'd');
create index if not exists write_adopted on mg.write (sender) where state = 'd' and replica <> sender;
create index if not exists write_ended on mg.write (ended);

create table if not exists mg.record (
  replica text not null, seq bigint not null, time timestamptz not null, kind text not null, caller text,
  organization bigint, operation text, status smallint, answer text, request text, line text not null)
  partition by range (time);
create index if not exists record_caller on mg.record (caller, time desc);
create index if not exists record_request on mg.record (request) where request is not null;
create index if not exists record_time on mg.record using brin (time);
-- How far each log is in mg.record. A replica whose folder was lost has another log, which begins with 1 again.
create table if not exists mg.shipped (
  replica text, log text, seq bigint not null, newest bigint not null, reported timestamptz not null default clock_timestamp(),
  primary key (replica, log));
create table if not exists mg.head (
  replica text, log text, size bigint, note text not null, time timestamptz not null default clock_timestamp(),
  primary key (replica, log, size));
create index if not exists head_time on mg.head (replica, time desc);
-- What each caller spent in each hour since 1970, counted from all records, shipped or not.
create table if not exists mg.ledger (
  replica text, hour bigint, caller text, operation text, organization bigint, requests bigint not null, spent bigint not null,
  saved bigint not null, waited_us bigint not null, refused bigint not null, out_of_quota bigint not null,
  primary key (hour, replica, caller, operation, organization));

-- Soft state: not logged. A crash or a failover of the engine empties all of it at once, and then the epoch is another.

create unlogged table if not exists mg.epoch (
  one bool primary key default true check (one), id uuid not null default gen_random_uuid(),
  born timestamptz not null default clock_timestamp());
create unlogged table if not exists mg.member (
  replica text primary key, incarnation uuid not null, beats bigint not null, acked bigint not null,
  slots_told bool not null default false,  -- it has put back what it spent of each quota
  writes_told bool not null default false, -- and the writes that the engine lacked
  gone bool not null default false, started timestamptz not null,
  version text not null, config_sha256 text not null) with (fillfactor = 30);
create unlogged table if not exists mg.fence_head (one bool primary key default true check (one), seq bigint not null);
create unlogged table if not exists mg.fence (
  seq bigint primary key, tags text[] not null, doubt_ms int, raised_by uuid not null, at timestamptz not null);
create unlogged table if not exists mg.rate (caller text primary key, tat_ns bigint not null) with (fillfactor = 50);
create unlogged table if not exists mg.bucket (
  id text primary key, version bigint not null, state bytea not null, touched timestamptz not null default clock_timestamp())
  with (fillfactor = 30);
-- Not an identity: its sequence would be unlogged, too, and those of PostgreSQL 15 are broken on a promoted standby.
create sequence if not exists mg.ticket;
create unlogged table if not exists mg.turn (
  path text, ticket bigint not null default nextval('mg.ticket'), held bool not null default false,
  replica text not null, incarnation uuid not null, draw bigint not null, -- whose it is, and which of its draws
  primary key (path, ticket));
create unique index if not exists turn_held on mg.turn (path) where held;

-- One beat of a replica: it lives, and has applied the fences up to `done`. Answers with those after that, or says that it
--   joined:  it must fence everything before it counts a lease;
--   gone:    others had given it up. It is back, but has no lease before its next beat: a fence that was raised while it was gone
--            waited for nobody, and may be too young for this answer;
--   taken:   another process with this name is alive;
--   late:    a newer beat of this process was carried out before. This one is void: nobody hears its answer any more.
create or replace function mg.beat(
  me text, inc uuid, ep uuid, n bigint, done bigint, began_us bigint, lease bigint, release text, config text)
returns table (epoch uuid, verdict text, head bigint, seq bigint, tags text[], doubt_ms int,
  raised_by uuid)
language plpgsql as $$
#variable_conflict use_column
declare
  cur uuid; was mg.member; h bigint; oldest bigint; v text;
  began timestamptz := timestamptz 'epoch' + began_us * interval '1 microsecond';
begin
  select id into cur from mg.epoch;
  if cur is null then
    insert into mg.epoch default values on conflict do nothing;
    insert into mg.fence_head values (true, 0) on conflict do nothing;
    select id into cur from mg.epoch;
  end if;
  select * into was from mg.member where replica = me for update;
  select f.seq into h from mg.fence_head f;
  select min(f.seq) into oldest from mg.fence f;
  if was.replica is not null and was.incarnation <> inc and not was.gone then
    return query select cur, 'taken', h, null::bigint, null::text[], null::int, null::uuid;
    return;
  end if;
  if was.incarnation = inc and was.beats >= n then
    return query select cur, 'late', h, null::bigint, null::text[], null::int, null::uuid;
    return;
  end if;
  -- A primary that was replaced by its standby must not go on giving leases: with a synchronous standby, this commit waits for it.
  if current_setting('synchronous_standby_names') <> '' then
    perform pg_logical_emit_message(true, 'mg', '');
  end if;
  if was.incarnation = inc and cur = ep and (h <= done or oldest <= done + 1) then
    v := case when was.gone then 'gone' else 'member' end;
    update mg.member set beats = n, acked = greatest(acked, done), gone = false, version = release, config_sha256 = config
      where replica = me;
    return query select cur, v, h, f.seq, f.tags, f.doubt_ms, f.raised_by
      from (select 1) one left join mg.fence f on f.seq > done order by f.seq;
    return;
  end if;
  insert into mg.replica (name, incarnation, joined, lease_ms) values (me, inc, clock_timestamp(), lease)
    on conflict (name) do update set incarnation = excluded.incarnation, joined = excluded.joined, left_at = null,
      lease_ms = excluded.lease_ms;
  insert into mg.member (replica, incarnation, beats, acked, started, version, config_sha256)
    values (me, inc, n, h, began, release, config)
    on conflict (replica) do update set incarnation = inc, beats = n, acked = h, slots_told = false, writes_told = false, gone = false,
      started = began, version = release, config_sha256 = config;
  return query select cur, 'joined', h, null::bigint, null::text[], null::int, null::uuid;
end $$;

-- Raises the fences of these tags (none: everything) for the process `me` and returns the place of this in the one order of all raises.
-- The row lock on fence_head makes the order of places that of commits.
create or replace function mg.raise(ep uuid, what text[], doubt int, me uuid) returns bigint language plpgsql as $$
declare s bigint; told text;
begin
  update mg.fence_head set seq = seq + 1 where ep = (select id from mg.epoch) returning seq into s;
  if s is null then
    raise exception 'another epoch' using errcode = 'MG001';
  end if;
  insert into mg.fence values (s, what, doubt, me, clock_timestamp());
  told := concat_ws(' ', s, ep, me, coalesce(doubt::text, '-'), to_json(what));
  if octet_length(told) > 7900 then
    told := s::text;
  end if;
  perform pg_notify('mg_fence', told);
  return s;
end $$;
