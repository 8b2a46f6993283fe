//! The [`tower::Service`] that serves a connection. Its bounds are stated only here.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

/// The body of a request: hyper's, or any other in tests without a socket.
pub trait RequestBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B> RequestBody for B where B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

/// Answers the requests of one connection. Over HTTP/2, clones of it answer several at the same time.
pub trait ConnectionService<R>:
    Service<Request<R>, Response = Response<Self::AnswerBody>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
    /// The body of its answers.
    type AnswerBody: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static;
}

impl<S, R, B> ConnectionService<R> for S
where
    S: Service<Request<R>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type AnswerBody = B;
}
