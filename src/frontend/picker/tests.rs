//! The picker over plain HTTP, without a socket.

use super::*;
use crate::picker::digest::Digest;

fn picker() -> Picker {
    let picker = Picker::new(FleetOptions::default());
    let now = Instant::now();
    let mut fleet = picker.shared.fleet.lock();
    for id in fleet.set_members(&["10.0.0.1:8000", "10.0.0.2:8000"].map(str::to_owned)) {
        fleet.hear(id, &Digest::idle(1, 1), now, now);
    }
    drop(fleet);
    picker
}

#[test]
fn a_pick_over_http_names_the_endpoints_and_what_is_missing() {
    let picker = picker();
    let ask = |query: &str| documents::pick(&picker.shared, &http::HeaderMap::new(), query);
    assert!(ask("model=a").is_ok() && ask("path=/v2/models/a%2Fb/infer").is_ok());
    for (query, text) in
        [("", "no model is named"), ("model=", "no model"), ("name=a", "'name'"), ("path=/v2", "no model")]
    {
        let told = ask(query).map(|_| ()).unwrap_err().report();
        assert!(told.contains(text), "{query}: {told}");
    }
    let mut headers = http::HeaderMap::new();
    headers.insert("x-amzn-sagemaker-target-model", "a".parse().unwrap());
    assert!(documents::pick(&picker.shared, &headers, "").is_ok());
    let nobody = Picker::new(FleetOptions::default());
    let told = documents::pick(&nobody.shared, &headers, "").map(|_| ()).unwrap_err();
    assert_eq!(told.kind(), crate::error::ErrorKind::NotReady);
    // A pick over HTTP is in flight for nobody.
    assert!(picker.shared.fleet.lock().overview(Instant::now()).iter().all(|row| row.in_flight == 0));
}
