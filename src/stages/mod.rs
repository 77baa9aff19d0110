//! One file per arrow of the picture in the crate's docs; each opens with the type that it produces.

pub mod baseline;
pub mod decode;
pub mod embed;
pub mod evaluate;
pub mod gate;
pub mod load;
pub mod preprocess;
pub mod report;
mod room;
pub mod scan;
pub mod store;
