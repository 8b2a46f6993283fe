//! The bodies that this door reads: small, whole and in time.

use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::refusal::{BODY_BYTES_MAX, OperatorRefusal};

/// A body that takes longer is given up.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// The whole body.
///
/// # Errors
/// It is too large, too slow or cut.
pub(super) async fn read<B>(body: B) -> Result<Bytes, OperatorRefusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let whole = tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match whole.map_err(|_| OperatorRefusal::BodySlow)? {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(OperatorRefusal::BodyTooLarge),
        Err(_) => Err(OperatorRefusal::BadBody { why: "the body was cut: send it again".to_owned() }),
    }
}
