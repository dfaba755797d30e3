//! How benchmarks and fuzz targets reach functions that are private to the crate.

pub mod bench;
pub mod fuzz;
