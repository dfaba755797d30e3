//! Runs the scripts in this process, over a map and a clock that only moves when it is told to.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use mlua::{Function, Lua, Table, Value as LuaValue, Variadic};
use redis::Value;

use super::super::{Call, Op};

/// A server that knows the commands of the scripts.
pub(super) struct FakeRedis {
    lua: Lua,
    scripts: HashMap<&'static str, Function>,
    server: Rc<RefCell<Server>>,
}

/// The state of the server.
#[derive(Default)]
pub(super) struct Server {
    pub(super) now_ms: u64,
    pub(super) data: Data,
}

/// What a flush removes and a failover may lose.
#[derive(Clone, Default)]
pub(super) struct Data {
    strings: BTreeMap<Vec<u8>, Entry>,
    hashes: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
}

#[derive(Clone)]
struct Entry {
    value: Vec<u8>,
    expires_ms: Option<u64>,
}

/// The texts of scripts in which a part is replaced.
pub(super) type Patch = (Op, &'static str, &'static str);

// === impl FakeRedis ===

impl FakeRedis {
    pub(super) fn new(patches: &[Patch]) -> Self {
        let lua = Lua::new();
        let server = Rc::new(RefCell::new(Server::default()));
        let redis = lua.create_table().unwrap();
        let called = server.clone();
        let call = move |lua: &Lua, args: Variadic<LuaValue>| {
            let args: Vec<_> = args.iter().map(bytes).collect();
            called.borrow_mut().command(lua, &args)
        };
        redis
            .set("call", lua.create_function(call).unwrap())
            .unwrap();
        lua.globals().set("redis", redis).unwrap();
        let mut scripts = HashMap::new();
        for op in [
            Op::Claim,
            Op::Mark,
            Op::Settle,
            Op::Resolve,
            Op::TakeFlow,
            Op::Publish,
            Op::Beat,
        ] {
            let mut source = op.source().to_owned();
            for (patched, before, after) in patches {
                if *patched == op {
                    assert!(source.contains(before), "{before} is not in {op:?}");
                    source = source.replace(before, after);
                }
            }
            let script = lua.load(source).set_name(op.label()).into_function();
            scripts.insert(op.source(), script.unwrap());
        }
        Self {
            lua,
            scripts,
            server,
        }
    }

    pub(super) fn server(&self) -> std::cell::RefMut<'_, Server> {
        self.server.borrow_mut()
    }

    /// Runs a script.
    pub(super) fn run(&self, call: &Call) -> Value {
        let globals = self.lua.globals();
        let list = |texts: Vec<&[u8]>| {
            let texts = texts
                .into_iter()
                .map(|text| self.lua.create_string(text).unwrap());
            self.lua.create_sequence_from(texts).unwrap()
        };
        let keys = call.keys.iter().map(String::as_bytes).collect();
        globals.set("KEYS", list(keys)).unwrap();
        let args = call.args.iter().map(Vec::as_slice).collect();
        globals.set("ARGV", list(args)).unwrap();
        let answer: LuaValue = self.scripts[call.op.source()].call(()).unwrap();
        reply(&answer)
    }
}

// === impl Server ===

impl Server {
    /// The value of a key, for a test.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        let entry = self.data.strings.get(key.as_bytes())?;
        let is_live = entry.expires_ms.is_none_or(|at| at > self.now_ms);
        is_live.then(|| String::from_utf8(entry.value.clone()).unwrap())
    }

    /// The fields of a hash, for a test.
    pub(super) fn fields(&self, key: &str) -> Vec<String> {
        let hash = self.data.hashes.get(key.as_bytes());
        let fields = hash.into_iter().flat_map(BTreeMap::keys);
        fields
            .map(|field| String::from_utf8(field.clone()).unwrap())
            .collect()
    }

    fn command(&mut self, lua: &Lua, args: &[Vec<u8>]) -> mlua::Result<LuaValue> {
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<u64>().unwrap();
        let text = |bytes: &[u8]| lua.create_string(bytes).map(LuaValue::String);
        let name = std::str::from_utf8(&args[0]).unwrap();
        let now = self.now_ms;
        let strings = &mut self.data.strings;
        strings.retain(|_, entry| entry.expires_ms.is_none_or(|at| at > now));
        match (name, &args[1..]) {
            ("TIME", []) => {
                let (seconds, micros) = (now / 1000, now % 1000 * 1000);
                let time = [
                    text(seconds.to_string().as_bytes())?,
                    text(micros.to_string().as_bytes())?,
                ];
                lua.create_sequence_from(time).map(LuaValue::Table)
            }
            ("GET", [key]) => match strings.get(key) {
                Some(entry) => text(&entry.value),
                None => Ok(LuaValue::Boolean(false)),
            },
            ("SET", [key, value, expiry @ ..]) => {
                let expires_ms = match expiry {
                    [px, ms] if px == b"PX" && number(ms) > 0 => Some(now + number(ms)),
                    [] => None,
                    _ => panic!("SET has other options"),
                };
                let value = value.clone();
                strings.insert(key.clone(), Entry { value, expires_ms });
                Ok(LuaValue::Boolean(true))
            }
            ("DEL", [key]) => Ok(LuaValue::Integer(strings.remove(key).is_some().into())),
            ("HGETALL", [key]) => {
                let hash = self.data.hashes.get(key).into_iter().flatten();
                let fields: mlua::Result<Vec<_>> = hash
                    .flat_map(|(field, value)| [text(field), text(value)])
                    .collect();
                lua.create_sequence_from(fields?).map(LuaValue::Table)
            }
            ("HSET", [key, field, value]) => {
                let hash = self.data.hashes.entry(key.clone()).or_default();
                hash.insert(field.clone(), value.clone());
                Ok(LuaValue::Integer(1))
            }
            ("HGET", [key, field]) => {
                match self.data.hashes.get(key).and_then(|hash| hash.get(field)) {
                    Some(value) => text(value),
                    None => Ok(LuaValue::Boolean(false)),
                }
            }
            ("HDEL", [key, field]) => {
                let hash = self.data.hashes.entry(key.clone()).or_default();
                hash.remove(field);
                Ok(LuaValue::Integer(1))
            }
            // No run lasts as long as a hash is kept.
            ("PEXPIRE", [_key, _ms]) => Ok(LuaValue::Integer(1)),
            (name, args) => panic!("{name} with {} arguments is not known", args.len()),
        }
    }
}

/// An argument of a command, as Redis takes it.
fn bytes(value: &LuaValue) -> Vec<u8> {
    match value {
        LuaValue::String(text) => text.as_bytes().to_vec(),
        LuaValue::Integer(number) => number.to_string().into_bytes(),
        other => panic!("{other:?} is no argument of a command"),
    }
}

/// What the client receives for the result of a script.
fn reply(value: &LuaValue) -> Value {
    match value {
        LuaValue::String(text) => Value::BulkString(text.as_bytes().to_vec()),
        LuaValue::Table(table) => Value::Array(elements(table).iter().map(reply).collect()),
        other => panic!("{other:?} is no answer of a script"),
    }
}

fn elements(table: &Table) -> Vec<LuaValue> {
    table
        .sequence_values()
        .collect::<mlua::Result<_>>()
        .unwrap()
}
