//! What is on the page.

use super::*;
use crate::metrics::statistics::ModelStatistics;

#[test]
fn a_page_has_each_family_once_and_a_series_a_model() {
    let metrics = ServerMetrics::new().unwrap();
    let statistics = ModelStatistics::default();
    let one = |model| ModelSeries {
        model,
        version: 1,
        statistics: &statistics,
        pending: 0,
        load_seconds: 0.5,
        cached: **model == *"a",
    };
    let (a, b) = ("a".into(), "b\"c".into());
    let page = metrics.render(&[one(&a), one(&b)], Detail::Busiest, &[]);
    assert_eq!(page.matches("# TYPE nv_inference_request_success counter").count(), 1);
    assert!(page.contains("nv_inference_request_success{model=\"a\",version=\"1\"} 0\n"), "{page}");
    assert!(page.contains("model=\"b\\\"c\""), "{page}");
    assert!(page.contains("nv_model_load_duration_secs{model=\"a\",version=\"1\"} 0.5\n"), "{page}");
    assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 0"), "{page}");
    assert_eq!(page.matches("nv_cache_num_hits_per_model{").count(), 1, "b keeps no answers");
}

#[test]
fn one_series_stands_for_all_but_the_busiest_unless_each_is_asked_for() {
    let metrics = ServerMetrics::for_most(1).unwrap();
    let (quiet, busy) = (ModelStatistics::default(), ModelStatistics::default());
    quiet.record_success(Duration::from_micros(5), Duration::ZERO);
    quiet.record_failure(crate::metrics::statistics::FailureReason::Backend, Duration::ZERO);
    for _ in 0..9 {
        busy.record_success(Duration::ZERO, Duration::ZERO);
    }
    let names = ["a", "b", "c"].map(Arc::<str>::from);
    let series: Vec<_> = names
        .iter()
        .zip([&quiet, &busy, &quiet])
        .map(|(model, statistics)| ModelSeries {
            model,
            version: 1,
            statistics,
            pending: 2,
            load_seconds: 0.5,
            cached: false,
        })
        .collect();
    let page = metrics.render(&series, Detail::Busiest, &[]);
    for line in [
        "nv_inference_request_success{model=\"b\",version=\"1\"} 9\n",
        "nv_inference_request_success{model=\"*\",version=\"\"} 2\n",
        "nv_inference_request_duration_us{model=\"*\",version=\"\"} 10\n",
        "nv_inference_request_failure{model=\"*\",version=\"\",reason=\"BACKEND\"} 2\n",
        "nv_inference_pending_request_count{model=\"*\",version=\"\"} 4\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    assert!(!page.contains("model=\"a\""), "{page}");
    assert!(!page.contains("nv_model_load_duration_secs{model=\"*\""), "a sum of these says nothing");
    let each = metrics.render(&series, Detail::Each, &[]);
    assert!(each.contains("{model=\"a\"") && !each.contains("model=\"*\""), "{each}");
}

#[test]
fn samples_that_are_read_for_the_page_have_their_labels_or_none() {
    let metrics = ServerMetrics::new().unwrap();
    let samples = [Sample::new(defs::SCALE_PRESSURE, [], 0.5), Sample::new(defs::CHURN_AGE, ["disk".to_owned()], 3.0)];
    let page = metrics.render(&[], Detail::Busiest, &samples);
    for line in ["roundhouse_scale_pressure 0.5\n", "roundhouse_churn_age_seconds{tier=\"disk\"} 3\n"] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    assert!(!metrics.render(&[], Detail::Busiest, &[]).contains("roundhouse_churn_age"), "a sample does not stay");
}

#[test]
fn what_left_for_want_of_room_makes_the_churn_age() {
    let metrics = ServerMetrics::new().unwrap();
    metrics.evicted("device", "room", Duration::from_secs(50));
    metrics.evicted("device", "unload", Duration::from_secs(5000));
    assert_eq!(metrics.churn_ages(Instant::now()), [Some(50.0), None]);
    metrics.lookups_hit.increment(3);
    metrics.lookups_miss.increment(1);
    assert_eq!(metrics.lookups(), (3, 1));
}

#[test]
fn series_end_with_their_model() {
    let metrics = ServerMetrics::new().unwrap();
    assert!(!metrics.render(&[], Detail::Busiest, &[]).contains("nv_inference"));
}

#[test]
fn server_wide_series_are_on_the_page() {
    let metrics = ServerMetrics::new().unwrap();
    metrics.loads_ok.increment(1);
    metrics.load_seconds.record(0.02);
    metrics.set(defs::host::CPU_MEMORY_TOTAL, 42.0);
    let page = metrics.render(&[], Detail::Busiest, &[]);
    assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 1"), "{page}");
    assert!(page.contains("roundhouse_model_load_seconds_bucket{le=\"0.025\"} 1"), "{page}");
    assert!(page.contains("nv_cpu_memory_total_bytes 42"), "{page}");
}

#[test]
fn what_has_not_happened_yet_is_on_the_page_as_zero() {
    let page = ServerMetrics::new().unwrap().render(&[], Detail::Busiest, &[]);
    for (family, labels) in FROM_THE_START {
        let labels: Vec<_> = labels.iter().map(|(name, word)| format!("{name}=\"{word}\"")).collect();
        let suffix = if family.kind == Kind::Histogram { "_count" } else { "" };
        let line = format!("{}{suffix}{{{}}} 0\n", family.name, labels.join(","));
        assert!(page.contains(&line), "{line} is not in {page}");
    }
    for line in ["roundhouse_loads_waiting 0\n", "roundhouse_model_lookups_total{outcome=\"miss\"} 0\n"] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn each_eviction_is_counted_with_its_age() {
    let metrics = ServerMetrics::new().unwrap();
    metrics.evicted("device", "room", Duration::from_secs(50));
    metrics.evicted("device", "unload", Duration::from_secs(700_000));
    metrics.evicted_unlike_lru("device");
    let page = metrics.render(&[], Detail::Busiest, &[]);
    for line in [
        "roundhouse_evictions_total{tier=\"device\",reason=\"room\"} 1\n",
        "roundhouse_evictions_total{tier=\"disk\",reason=\"room\"} 0\n",
        "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"10\"} 0\n",
        "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"60\"} 1\n",
        "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"604800\"} 1\n",
        "roundhouse_eviction_age_seconds_count{tier=\"device\"} 2\n",
        "roundhouse_evictions_unlike_lru_total{tier=\"device\"} 1\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn loads_are_counted_by_their_source_and_their_phases_timed() {
    let metrics = ServerMetrics::new().unwrap();
    metrics.loaded_from("remote");
    metrics.load_phase("fetch", Duration::from_millis(1_500));
    metrics.fetch_ended("cancelled");
    metrics.fetched_bytes.increment(7);
    let page = metrics.render(&[], Detail::Busiest, &[]);
    for line in [
        "roundhouse_model_loads_by_source_total{source=\"remote\"} 1\n",
        "roundhouse_load_phase_seconds_sum{phase=\"fetch\"} 1.5\n",
        "roundhouse_load_phase_seconds_count{phase=\"wait\"} 0\n",
        "roundhouse_fetches_total{outcome=\"cancelled\"} 1\n",
        "roundhouse_fetched_bytes_total 7\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn a_gauge_has_a_series_for_each_of_its_labels() {
    let metrics = ServerMetrics::new().unwrap();
    let on = |device: &str| [("tier", "device".to_owned()), ("device", device.to_owned())];
    metrics.set_labelled(defs::TIER_BOOKED, &on("cpu"), 5.0);
    metrics.set_labelled(defs::TIER_BOOKED, &on("gpu:0"), 6.0);
    metrics.set_labelled(defs::TIER_BOOKED, &on("gpu:0"), 7.0);
    metrics.set_labelled(defs::GPU_MEMORY_USED, &[("gpu_uuid", "GPU-1".to_owned())], 8.0);
    let page = metrics.render(&[], Detail::Busiest, &[]);
    for line in [
        "roundhouse_tier_booked_bytes{tier=\"device\",device=\"cpu\"} 5\n",
        "roundhouse_tier_booked_bytes{tier=\"device\",device=\"gpu:0\"} 7\n",
        "nv_gpu_memory_used_bytes{gpu_uuid=\"GPU-1\"} 8\n",
        "# TYPE roundhouse_tier_booked_bytes gauge\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn every_label_that_is_there_from_the_start_is_one_of_its_family() {
    for (family, labels) in FROM_THE_START {
        let names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, family.labels, "{}", family.name);
    }
}
