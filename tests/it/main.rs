mod golden_features;
mod models;
