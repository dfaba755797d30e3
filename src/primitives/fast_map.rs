//! Maps for keys that no stranger chooses: those of the configuration, labels from a closed set, and
//! digests. Their hash is quick, and does not withstand keys that are chosen to collide; all other maps
//! use the standard library's.

use std::collections::HashMap;

use dashmap::DashMap;
use foldhash::fast::RandomState;

pub(crate) type FastMap<K, V> = HashMap<K, V, RandomState>;
pub(crate) type FastDashMap<K, V> = DashMap<K, V, RandomState>;
