//! A server with many models, to look them up and to publish them anew.

use std::{
    collections::{BTreeMap, HashMap},
    hint::black_box,
    sync::Arc,
};

use tidegate::{
    model::{ModelName, VersionId, VersionSelector, VersionState},
    monitor::{Clock, Monitor},
    serve::{Entry, Model, Serving, Settings, Table},
};

use crate::requests::{Served, SystemClock};

/// Many models, with a version each.
pub(crate) struct Registered {
    serving: Serving,
    names: Vec<String>,
    models: HashMap<ModelName, Arc<Model>>,
}

impl Registered {
    pub(crate) fn new(count: usize) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let monitor = Monitor::new(1, Arc::clone(&clock));
        let names: Vec<_> = (0..count).map(|number| format!("model_{number}")).collect();
        let version = Served::without_engine().version;
        let model = |name: &String| {
            let name = ModelName::parse(name).unwrap();
            let entry = Entry {
                id: VersionId::new(1),
                state: VersionState::Ready,
                reason: String::new(),
                version: Some(Arc::clone(&version)),
                on_demand: false,
                decided: false,
            };
            let model = Model {
                name: name.clone(),
                recorder: monitor.model(&name),
                versions: vec![entry],
                default: Some(VersionId::new(1)),
                aliases: BTreeMap::new(),
                pinned: None,
                problem: None,
                traffic: None,
                traffic_revision: 0,
                route_override: false,
                held_back: None,
            };
            (name, Arc::new(model))
        };
        let models = names.iter().map(model).collect();
        let registered = Self { serving: Serving::new(Settings::default(), clock), names, models };
        registered.publish();
        registered
    }

    /// As the keeper does it: all models are carried over, and the table before is let go.
    pub(crate) fn publish(&self) {
        let table = Table::new(self.models.clone(), true, Arc::default());
        drop(self.serving.publish(table));
    }

    /// The version that answers for a model, as a request finds it.
    pub(crate) fn find(&self, number: usize) {
        let table = self.serving.table();
        let name = &self.names[number];
        black_box(table.route(name, VersionSelector::Default).unwrap().id());
    }
}
