//! One test binary for everything that goes through the public interface.

mod readers;
mod sql;
mod store;
