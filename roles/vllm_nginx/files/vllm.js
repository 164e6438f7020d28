// What NGINX's own language cannot do: keys by their digest, and a request's model. For njs 0.7.9 and later.
import crypto from 'crypto';
import fs from 'fs';
import models from 'models.js';

// A request's members called "model" that are text. As a member's name it never follows a backslash. Looked for as text, since njs reads JSON
// only 32 levels deep, and stands still meanwhile: two seconds for 16 MB of small members, where this takes 0.1.
const MODEL = /(?<!\\)"model"\s*:\s*"((?:[^"\\]|\\.){0,512})"/g;
// What is read as a whole. njs finds members by a hash that a client can have collide: 2000 of them cost 30 ms, 19000 two seconds. A short text
// has no room for more. A long one, such as a picture, is read only for what cannot be told otherwise: 1 MB of small numbers costs 30 ms.
const SHORT = 1 << 14;
const READABLE = 1 << 20;
const MEMBER = /"\s*:/g;
const MOST_MEMBERS = 2000;
const MOST_NAMES = 1000;
// Seconds to wait for a load that takes longer than the last one did: a new engine's first, most of the time.
const LATE_S = 30;
// Routes that tell the tokens of a stream only where they are asked to. The others always do.
const TELLS_USAGE_IF_ASKED = ['/v1/chat/completions', '/v1/completions'];
const STREAM = /"stream"\s*:\s*true/;
// As vLLM's several routes name them. What a model says stands in a string, where quotes have a backslash.
const TOKENS = '_tokens":';
const PROMPT_TOKENS = /"(?:prompt|input)_tokens":\s*([0-9]+)/g;
const COMPLETION_TOKENS = /"(?:completion|output)_tokens":\s*([0-9]+)/g;
const USAGE_ALONE = /"choices":\s*\[\].*"usage":/;
const LONGEST_EVENT = 1 << 12;
const LONGEST_COUNT = 64;
const NEWLINE = 10;

// SHA-256 of the key that a client sends, in hex. NGINX's map compares text without regard to case, which for digests does no harm and for
// keys would; and so no key lies on the proxy's disk.
function keyDigest(r) {
    const sent = r.headersIn.Authorization || '';
    const key = sent.slice(0, 7).toLowerCase() === 'bearer ' ? sent.slice(7).trim() : '';
    return key ? crypto.createHash('sha256').update(key).digest('hex') : '';
}

// The client's name; '' for a key that is missing, wrong or has expired.
function client(r) {
    const expires = Number(r.variables.vllm_key_expires);
    return expires && expires * 1000 <= Date.now() ? '' : r.variables.vllm_key_client;
}

// The models that the client may use; without a scope, all.
function modelsFor(r) {
    const scope = r.variables.vllm_scope && r.variables.vllm_scope.split(' ');
    return scope ? models.filter((model) => scope.indexOf(model.name) >= 0) : models;
}

// Whether a text is short and simple enough to be read as JSON.
function isReadable(text) {
    let members = 0;
    MEMBER.lastIndex = 0;
    while (text.length > SHORT && text.length <= READABLE && MEMBER.exec(text) !== null) {
        if (++members > MOST_MEMBERS) {
            return false;
        }
    }
    return text.length <= READABLE;
}

// The object that a text is; null for anything else, and where that would take too long.
function objectOf(text) {
    try {
        const read = isReadable(text) ? JSON.parse(text) : null;
        return typeof read === 'object' ? read : null;
    } catch (e) {
        return null;
    }
}

// A request's model as text; '' where it names none, null where it is no text.
function nameOf(model) {
    return model === undefined ? '' : typeof model === 'string' ? model : null;
}

// The model that a request names, which has not been read; '' where it names none, null where it cannot be told.
function modelOf(text) {
    const names = [];
    let match, seen = 0;
    MODEL.lastIndex = 0;
    while ((match = MODEL.exec(text)) !== null) {
        if (names.indexOf(match[1]) < 0) {
            names.push(match[1]);
        }
        if (names.length > 1) {
            break;
        }
        // The same name again and again: each find costs memory until the request's end.
        if (++seen > MOST_NAMES) {
            return null;
        }
    }
    if (names.length > 1) {
        // Members of members have the name as well: only the whole text tells which is the request's own.
        const request = objectOf(text);
        return request && nameOf(request.model);
    }
    try {
        return JSON.parse(`"${names[0] || ''}"`);
    } catch (e) {
        return null;
    }
}

// Whether an instance takes requests. Its launcher says so: not before it has begun, and not while it loads, drains or hangs.
function takesRequests(replica) {
    const folder = `/run/vllm/${replica.name}`;
    try {
        // Each is asked for so that it costs little as it mostly is: an exception takes half a millisecond, the numbers of a file that is there
        // some 10 us.
        if (fs.statSync(`${folder}/away`, { throwIfNoEntry: false })) {
            return false;
        }
        fs.accessSync(`${folder}/state.json`);
        return true;
    } catch (e) {
        return false;
    }
}

// The upstream group with those replicas that take requests; '' where none does. All but one are a group of their own, and those of a
// session are groups that send all of its requests to the same replica.
function poolOf(model, session) {
    const here = model.replicas.map((replica, index) => index).filter((index) => takesRequests(model.replicas[index]));
    const away = model.replicas.length - here.length;
    const sticky = session && here.length > 1 ? '_session' : '';
    if (!away) {
        return `vllm_${model.name}${sticky}`;
    }
    if (away === 1 && here.length > 1) {
        return `vllm_${model.name}_without_${model.replicas.findIndex((replica, index) => here.indexOf(index) < 0)}${sticky}`;
    }
    return here.length ? `vllm_${model.name}_only_${here[Math.floor(Math.random() * here.length)]}` : '';
}

// Seconds until a model is likely to take requests again; '' where nothing tells. Its launcher says when by the time of the file "away", since
// what stands in a file that belongs to an engine's account may never end; the file's other time is the one when it said so. The SDKs come back
// twice, and wait for 60 s at most.
function waitFor(model) {
    const now = Date.now();
    const waits = model.replicas.map((replica) => fs.statSync(`/run/vllm/${replica.name}/away`, { throwIfNoEntry: false }))
        .filter((away) => away && (away.mtimeMs > now || away.mtimeMs > away.atimeMs))
        .map((away) => (away.mtimeMs > now ? (away.mtimeMs - now) / 1000 + 2 : LATE_S));
    return waits.length ? String(Math.ceil(Math.min(60, Math.max(5, Math.min.apply(null, waits))))) : '';
}

function refuse(r, status, code, message) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({ error: { message, type: 'invalid_request_error', param: 'model', code } }));
}

// Leads a request to the model that its path says ($vllm_model), or else its body.
function route(r) {
    const slug = r.variables.vllm_model;
    const text = r.requestText || '';
    const request = text.length <= SHORT ? objectOf(text) : null;
    const name = slug ? '' : request ? nameOf(request.model) : modelOf(text);
    if (name === null) {
        refuse(r, 400, 'bad_request', 'The request is no JSON object, or its "model" is no text.');
        return;
    }
    // One that names no model gets the default one, as from vLLM alone.
    const model = modelsFor(r).find((one) => (slug ? one.name === slug : name ? one.served_as.indexOf(name) >= 0 : one.default));
    if (!model && !slug && !name) {
        refuse(r, 400, 'model_missing', 'The request names no "model". GET /v1/models lists those that there are.');
        return;
    }
    if (!model) {
        // Bytes that are no UTF-8 would make the answer none.
        const wanted = (slug || name).replace(/[^ -~]/g, '?');
        refuse(r, 404, 'model_not_found', `The model '${wanted}' does not exist. GET /v1/models lists those that do.`);
        return;
    }
    r.variables.vllm_model = model.name;
    r.variables.vllm_pool = poolOf(model, r.variables.vllm_session);
    if (!r.variables.vllm_pool) {
        r.variables.vllm_wait = waitFor(model);
        r.return(503);
        return;
    }
    r.variables.vllm_body = r.variables.vllm_log_tokens && withUsage(r.variables.vllm_route, text, request);
    r.internalRedirect(r.variables.vllm_body ? '@vllm_with_usage' : '@vllm');
}

// ---- Tokens ---------------------------------------------------------------------------------------------------------

// A request for a stream, with the wish for an event at its end that says how many tokens it had; '' where that cannot be wished for. `read` is
// the request as an object, or null where it has not been read.
function withUsage(path, text, read) {
    if (TELLS_USAGE_IF_ASKED.indexOf(path) < 0) {
        return '';
    }
    const request = read || (STREAM.test(text) && objectOf(text));
    // Only where it is a stream: vLLM refuses the wish for anything else. A wish of the client's own stays as it is.
    return request && request.stream === true && !request.stream_options ? text.replace('{', '{"stream_options":{"include_usage":true},') : '';
}

function count(r, text) {
    [['vllm_prompt_tokens', PROMPT_TOKENS], ['vllm_completion_tokens', COMPLETION_TOKENS]].forEach((one) => {
        let match;
        one[1].lastIndex = 0;
        while ((match = one[1].exec(text)) !== null) {
            r.variables[one[0]] = match[1];
        }
    });
}

// What came of an answer and is not through yet: an event that has begun. Of an answer that passes as it is, only its last bytes, with half of
// a number. Each request has variables of its own.
let begun = Buffer.from('');

// Reads the tokens out of an answer. The event with them is taken out where only the gateway has asked for it, since many clients take the
// list of choices to be never empty. What goes through here, NGINX holds until the client has taken it: nothing long does.
function meter(r, data, flags) {
    if (Number(r.headersOut['Content-Length']) > READABLE) {
        r.sendBuffer(data, flags);
        r.done();
        return;
    }
    // Whole events without them. njs frees no memory before the request's end, so nothing is made here of each.
    const whole = data.length > 1 && data[data.length - 1] === NEWLINE && data[data.length - 2] === NEWLINE;
    if (whole && !begun.length && data.indexOf(TOKENS) < 0) {
        r.sendBuffer(data, flags);
        return;
    }
    let all = begun.length ? Buffer.concat([begun, data]) : data;
    if (!r.variables.vllm_body) {
        if (all.indexOf(TOKENS) >= 0) {
            count(r, all.toString());
        }
        // No number goes on after a whole event.
        begun = all.subarray(whole ? all.length : Math.max(0, all.length - LONGEST_COUNT));
        r.sendBuffer(data, flags);
        return;
    }
    const last = all.lastIndexOf('\n\n');
    const end = flags.last ? all.length : last >= 0 ? last + 2 : Math.max(0, all.length - LONGEST_EVENT);
    begun = all.subarray(end);
    all = all.subarray(0, end);
    if (all.indexOf(TOKENS) >= 0) {
        count(r, all.toString());
        all = all.toString().split('\n\n').filter((event) => !USAGE_ALONE.test(event)).join('\n\n');
    }
    if (all.length || flags.last) {
        r.sendBuffer(all, flags);
    }
}

// All names of all models that the client may use, and how long a request may be, which clients read of vLLM's own list.
function list(r) {
    const data = [];
    modelsFor(r).forEach((model) => {
        model.served_as.forEach((id) => {
            data.push({ id, object: 'model', created: 0, owned_by: 'vllm', max_model_len: model.max_model_len });
        });
    });
    r.headersOut['Content-Type'] = 'application/json';
    r.return(200, JSON.stringify({ object: 'list', data }));
}

// For a load balancer in front of this host: whether each model has an instance that takes requests.
function ready(r) {
    if (models.every((model) => model.replicas.some(takesRequests))) {
        r.return(200, '');
    } else {
        r.return(503);
    }
}

export default { client, keyDigest, list, meter, modelOf, poolOf, ready, route };
