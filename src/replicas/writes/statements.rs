//! The statements about writes.

use tokio_postgres::types::Type;

use super::row::known_columns;
use crate::replicas::engine::Statement;

const T: Type = Type::TEXT;

/// Why a row answers: 1 has the key, 2 is equal and in doubt, 3 is open and has the request id.
pub(super) static EARLIER: Statement = Statement::new(
    concat!(
        "(select 1 as why, w.status, w.head, w.body, ",
        known_columns!(),
        " from mg.write w \
           where w.key = $3 and w.key is not null and w.state <> 'n') \
         union all (select 2, null::smallint, null::bytea, null::bytea, ",
        known_columns!(),
        " from mg.write w \
           where $3::bytea is null and w.caller = $1 and w.fingerprint = $2 and w.state = 'd' limit 1) \
         union all (select 3, null::smallint, null::bytea, null::bytea, ",
        known_columns!(),
        " from mg.write w \
           where w.request = $4 and w.state in ('u', 'd'))"
    ),
    &[T, Type::BYTEA, Type::BYTEA, T],
);

/// The intents of a batch. Those that come back stand; the epoch and the membership are checked in the same statement, so that no write
/// goes on beside what a new epoch does not know yet, or after this replica was given up.
pub(super) static INTEND: Statement = Statement::new(
    "insert into mg.write (sender, replica, incarnation, id, request, caller, operation, organization, path, fingerprint, key, marks, time) \
     select $1, $1, $2, x.id, x.request, x.caller, x.operation, x.organization, x.path, x.fingerprint, x.key, x.marks, \
       timestamptz 'epoch' + x.time_us * interval '1 microsecond' from unnest($4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
       as x(id, request, caller, operation, organization, path, fingerprint, key, marks, time_us) \
     where exists (select from mg.epoch e where e.id = $3) \
       and exists (select from mg.member m where m.replica = $1 and m.incarnation = $2 and not m.gone) \
       and (x.key is not null or not exists \
         (select from mg.write d where d.caller = x.caller and d.fingerprint = x.fingerprint and d.state = 'd')) \
     on conflict do nothing returning id",
    &[
        T,
        Type::UUID,
        Type::UUID,
        Type::UUID_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::TEXT_ARRAY,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
    ],
);

/// Rows that the engine lacks, with their ends.
pub(super) static RESTORE: Statement = Statement::new(
    "insert into mg.write (sender, replica, incarnation, id, request, caller, operation, organization, path, fingerprint, key, marks, time, \
       state, done, status, head, body, ended) \
     select coalesce(x.sender, $1), $1, $2, x.id, x.request, x.caller, x.operation, x.organization, x.path, x.fingerprint, x.key, x.marks, \
       timestamptz 'epoch' + x.time_us * interval '1 microsecond', x.state::\"char\", x.done, x.status, x.head, x.body, case when x.state in ('e', 'n') then clock_timestamp() end \
     from unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
       as x(id, request, sender, caller, operation, organization, path, fingerprint, key, marks, time_us, state, done, status, head, body) \
     on conflict do nothing returning id",
    &[
        T,
        Type::UUID,
        Type::UUID_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::TEXT_ARRAY,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::TEXT_ARRAY,
        Type::BOOL_ARRAY,
        Type::INT2_ARRAY,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
    ],
);

/// How writes ended, by who sent them. What has ended stays as it is: the first end counts. A write in doubt stays in doubt until an end
/// is known.
pub(super) static END: Statement = Statement::new(
    "update mg.write w set state = x.state::\"char\", done = x.done, status = x.status, head = x.head, body = x.body, \
       ended = case when x.state in ('e', 'n') then clock_timestamp() end \
     from unnest($1, $2, $3, $4, $5, $6) as x(id, state, done, status, head, body) \
     where w.id = x.id and (w.state = 'u' or w.state = 'd' and x.state in ('e', 'n')) returning w.id",
    &[Type::UUID_ARRAY, Type::TEXT_ARRAY, Type::BOOL_ARRAY, Type::INT2_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
);

/// A verdict on a write in doubt. One that did not take effect frees its key.
pub(super) static SETTLE: Statement = Statement::new(
    concat!(
        "update mg.write w set state = case when $2 then 'e' else 'n' end::\"char\", done = $2, settled_by = $3, settled_at = $4, \
           note = $5, upstream_status = $6, ended = clock_timestamp() \
         where w.id = $1 and w.state = 'd' returning ",
        known_columns!()
    ),
    &[Type::UUID, Type::BOOL, T, T, T, Type::INT4],
);

pub(super) static FIND: Statement = Statement::new(
    concat!("select w.status, w.head, w.body, ", known_columns!(), " from mg.write w where w.id = any($1)"),
    &[Type::UUID_ARRAY],
);

pub(super) static DOUBTS: Statement = Statement::new(
    concat!("select ", known_columns!(), " from mg.write w where w.state = 'd' order by w.time, w.id limit $1"),
    &[Type::INT8],
);

pub(super) static DOUBT_OF: Statement = Statement::new(
    concat!(
        "select ",
        known_columns!(),
        " from mg.write w where w.request = $1 and w.state in ('u', 'd') and w.state = 'd'"
    ),
    &[T],
);

pub(super) static OWN_OPEN: Statement = Statement::new(
    concat!(
        "select ",
        known_columns!(),
        " from mg.write w where w.replica = $1 and w.state in ('u', 'd') \
           or w.sender = $1 and w.replica <> w.sender and w.state = 'd'"
    ),
    &[T],
);

/// Open writes of replicas that are gone become doubts of this one. Others that adopt at the same time skip them.
/// `$4`: also what is in doubt already.
pub(super) static ADOPT: Statement = Statement::new(
    concat!(
        "with lost as materialized (select l.id from mg.write l \
           where l.state in ('u', 'd') and (l.state = 'u' or $4) and l.replica <> $1 \
             and exists (select from mg.epoch e where e.id = $3) \
             and not exists (select from mg.member m where m.replica = l.replica and not m.gone) \
           order by l.time limit 500 for update of l skip locked), \
         taken as (update mg.write w set state = 'd', replica = $1, incarnation = $2 from lost where w.id = lost.id \
           returning ",
        known_columns!(),
        ") select * from taken"
    ),
    &[T, Type::UUID, Type::UUID, Type::BOOL],
);

/// Open writes of this replica become doubts of it, whoever had adopted them or not.
pub(super) static DOUBT_OWN: Statement = Statement::new(
    "update mg.write w set state = 'd', replica = $1, incarnation = $2 where w.id = any($3) and w.state = 'u'",
    &[T, Type::UUID, Type::UUID_ARRAY],
);

pub(super) static LACKING: Statement = Statement::new(
    "select x.id from unnest($1) as x(id) where not exists (select from mg.write w where w.id = x.id)",
    &[Type::UUID_ARRAY],
);

pub(super) static LACKING_KEYS: Statement = Statement::new(
    "select x.key from unnest($1) as x(key) \
     where not exists (select from mg.write w where w.key = x.key and w.key is not null and w.state <> 'n')",
    &[Type::BYTEA_ARRAY],
);

pub(super) static SAY_REASSERTED: Statement = Statement::new(
    "update mg.member m set writes_told = true \
     where m.replica = $1 and m.incarnation = $2 and exists (select from mg.epoch e where e.id = $3)",
    &[T, Type::UUID, Type::UUID],
);

/// Whether every replica that has not left is a member of this epoch and has said what it knows; and whether every member that is alive has.
pub(super) static ALL_REASSERTED: Statement = Statement::new(
    "select not exists (select from mg.replica r where r.left_at is null \
       and not exists (select from mg.member m where m.replica = r.name and m.writes_told)), \
       not exists (select from mg.member m where not m.gone and not m.writes_told) from mg.epoch e where e.id = $1",
    &[Type::UUID],
);

pub(super) static EXPIRE: Statement = Statement::new(
    "delete from mg.write where id in (select w.id from mg.write w \
       where w.ended < least(clock_timestamp(), timestamptz 'epoch' + $2 * interval '1 microsecond') - make_interval(secs => $1) \
         and w.state in ('e', 'n') \
       order by w.ended limit 1000 for update skip locked)",
    &[Type::FLOAT8, Type::INT8],
);

/// Ended writes with keys that are newer than this many seconds, after this key.
pub(super) static ENDED_KEYS: Statement = Statement::new(
    concat!(
        "select w.status, w.head, w.body, ",
        known_columns!(),
        " from mg.write w \
         where w.key > $1 and w.key is not null and w.state <> 'n' and w.state = 'e' order by w.key limit 200"
    ),
    &[Type::BYTEA],
);
