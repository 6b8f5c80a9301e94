//! The Helm chart, held to the code, rendered for every Kubernetes it is for, and installed into a real API server; and
//! the image.
//!
//! `UPDATE_CHART=1 cargo test --test chart` (`make chart`) writes anew what is made from elsewhere: the chart's copies of
//! CRDs, admission policies and rules, and the table of values in its README.

mod chart {
    mod again;
    #[path = "../common/monitoring.rs"]
    mod monitoring;
    #[path = "../common/rights.rs"]
    mod rights;

    mod alerts;
    mod crds;
    mod dashboard;
    mod files;
    mod gateway;
    mod gitops;
    mod helm;
    mod image;
    mod package;
    mod render;
    mod upgrade;
    mod values;
    mod versions;
    mod whole;
}
