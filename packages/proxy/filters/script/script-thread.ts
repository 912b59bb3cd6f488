import { registerHooks } from 'node:module';
import { pathToFileURL } from 'node:url';
import { parentPort, workerData } from 'node:worker_threads';
import { type FilterDefinition, FilterHeaders, type LocalAnswer } from '@mizzen/filter';
import { type FromThread, heartbeatMs, type ScriptCall, type ScriptResult, type ThreadData } from './script-messages.ts';

/**
 * The thread that runs a user's filter: what it throws, leaks or never ends stays in here, and the proxy ends the thread when it must. A new
 * version of the file gets a new thread, so that nothing of the old one is left.
 */
const { file, running } = workerData as ThreadData;
const current = new Int32Array(running);
const port = parentPort!;
const tell = (message: FromThread) => port.postMessage(message);

// A filter finds the library that it is written with wherever its file lies.
const libraries = new Map(['@mizzen/filter', '@mizzen/filter/testing'].map((specifier) => [specifier, import.meta.resolve(specifier)]));
registerHooks({
  resolve(specifier, context, nextResolve) {
    const url = libraries.get(specifier);
    return url === undefined ? nextResolve(specifier, context) : { url, shortCircuit: true };
  },
});

const configs = new Map<string, { readonly value: unknown } | { readonly problem: string }>();
const maxConfigs = 1_000;

function configOf(filter: FilterDefinition<unknown>, text: string): { readonly value: unknown } | { readonly problem: string } {
  let config = configs.get(text);
  if (config === undefined) {
    if (configs.size >= maxConfigs) configs.clear();
    const raw: unknown = text === '' ? undefined : JSON.parse(text);
    try {
      config = { value: filter.config === undefined ? raw : filter.config(raw) };
    } catch (error) {
      config = { problem: `its configuration is refused: ${describe(error)}` };
    }
    configs.set(text, config);
  }
  return config;
}

const describe = (error: unknown) => (error instanceof Error ? error.message : String(error));

async function run(filter: FilterDefinition<unknown>, call: ScriptCall): Promise<ScriptResult> {
  const config = configOf(filter, call.config);
  if ('problem' in config) return { kind: 'error', message: config.problem };
  const headers = new FilterHeaders(call.request.headers);
  const request = { ...call.request, headers };
  if (call.phase === 'request') {
    const answer = await filter.onRequest?.(request, config.value);
    if (answer !== undefined && answer !== null) {
      // It may have been made by a copy of the library that is not ours.
      const { status, body, headers: fields } = answer as LocalAnswer;
      if (!Number.isInteger(status) || typeof body !== 'string')
        return { kind: 'error', message: 'onRequest returned something else than an answer of respond()' };
      return { kind: 'answer', status, body, headers: [...new FilterHeaders(Object.entries(fields))] };
    }
    return {
      kind: 'continue',
      path: request.path === call.request.path ? undefined : request.path,
      status: undefined,
      headers: headers.isChanged ? [...headers] : undefined,
    };
  }
  const response = { status: call.response!.status, headers: new FilterHeaders(call.response!.headers) };
  await filter.onResponse?.(response, request, config.value);
  return {
    kind: 'continue',
    path: undefined,
    status: response.status === call.response!.status ? undefined : response.status,
    headers: response.headers.isChanged ? [...response.headers] : undefined,
  };
}

try {
  const module = (await import(pathToFileURL(file).href)) as { readonly default?: FilterDefinition<unknown> };
  const filter = module.default;
  if (typeof filter !== 'object' || filter === null || typeof filter.name !== 'string')
    throw new Error('the file has no filter as its default export: export default defineFilter({ name: ..., ... })');
  port.on('message', (call: ScriptCall) => {
    Atomics.store(current, 0, call.id);
    const finish = (result: ScriptResult) => tell({ kind: 'result', id: call.id, result });
    // What runs until its first await is known to be this call's.
    run(filter, call).then(finish, (error: unknown) => finish({ kind: 'error', message: describe(error) }));
    Atomics.store(current, 0, 0);
  });
  setInterval(() => Atomics.add(current, 1, 1), heartbeatMs);
  tell({ kind: 'loaded', name: filter.name, hasRequest: filter.onRequest !== undefined, hasResponse: filter.onResponse !== undefined });
} catch (error) {
  tell({ kind: 'failed', message: describe(error) });
}
