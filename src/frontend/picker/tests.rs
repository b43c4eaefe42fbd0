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

#[test]
fn an_instance_that_starts_is_told_its_share_in_the_words_of_a_digest() {
    let picker = picker();
    let now = Instant::now();
    let models: Vec<_> = (0..50).map(|number| format!("m{number}")).collect();
    let row = |(uses, name): (u64, &String)| crate::picker::digest::Row {
        model: Arc::from(name.as_str()),
        held: crate::picker::digest::Held::Ready,
        in_use: 0,
        parallel: 1,
        load_seconds: 0.1,
        uses,
    };
    let digest = Digest { rows: (0..).zip(&models).map(row).collect(), ..Digest::idle(1, 1) };
    let first = picker.shared.fleet.lock().find("10.0.0.1:8000").unwrap();
    picker.shared.fleet.lock().hear(first, &digest, now, now);
    let warm = picker.shared.fleet.lock().warm(now);
    let expected: Vec<_> = warm.share_of("[::1]:8000", |model| hash(model), 100);
    assert!((5..30).contains(&expected.len()), "a third or so: {}", expected.len());
    let share = documents::share(&picker.shared, "for=%5B%3A%3A1%5D%3A8000").unwrap();
    let told = futures_util::FutureExt::now_or_never(http_body_util::BodyExt::collect(share.into_body()));
    let told = digest::parse(&told.unwrap().unwrap().to_bytes()).unwrap();
    let mut told: Vec<_> = told.rows.into_iter().map(|row| (row.model, row.uses)).collect();
    told.sort_unstable_by_key(|(_, uses)| std::cmp::Reverse(*uses));
    assert_eq!(told, expected);
    for query in ["", "for=", "for=here", "for=10.0.0.1", "since=1"] {
        let told = documents::share(&picker.shared, query).map(|_| ()).unwrap_err().report();
        assert!(told.contains("/v1/digest?for=IP:PORT"), "{query}: {told}");
    }
}
