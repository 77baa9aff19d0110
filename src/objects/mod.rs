//! Object stores: what lies at `s3://bucket/key`, `gs://bucket/key` and `az://container/key`.
//!
//! The rest of the program is synchronous, and may call from any thread, also from one that runs asynchronous work: the requests
//! run on threads of their own, and the caller waits. What a newcomer would get wrong: *an object that could not be read is not
//! one that is gone*. Only an answer that says so (404) makes it that; anything else, once its retries are used up, is
//! [trouble](Bucket::trouble) with the bucket, all further reads fail at once, and a run ends without changing what is stored.
//!
//! docs/object-stores.md says how it is used.

mod bucket;
mod credentials;
mod error;
mod hash;
mod upload;
mod url;

pub use bucket::{Ahead, Bucket, Early, Found};
pub use error::ObjectError;
pub use hash::hashes;
pub use upload::upload_folder;
pub use url::{ObjectUrl, is_url};
