//! One test binary for everything that goes through the public interface.

mod sql;
mod store;
