import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { describe, it } from 'node:test';
import { findKind, type Resource } from '@mizzen/api';
import { ApiError } from '../api-error.ts';
import { SqliteStore } from '../sqlite-store.ts';
import { readAccessBindings, refusedBindings } from './access-bindings.ts';
import { readBody } from './request-body.ts';
import { RequestTurns } from './request-turns.ts';
import { fieldSelector, labelSelector } from './selectors.ts';
import { UnreadResponses } from './unread-responses.ts';
import { watchResources } from './watch.ts';

const subject = 'spiffe://cluster.local/ns/ops/sa/deployer';
const labelled = (labels: Record<string, string>) => ({ metadata: { name: 'x', labels } }) as unknown as Resource;

describe('access bindings', () => {
  it('grant nothing by an entry that is not exactly of their form', () => {
    const good = { subject, role: 'operator', namespaces: ['shop'] };
    const problemOf = (entry: unknown) => readAccessBindings(JSON.stringify([entry])).problems[0];
    assert.equal(problemOf(good), undefined);
    assert.deepEqual(readAccessBindings(JSON.stringify([{ subject, role: 'viewer' }])).bindings, [{ subject, role: 'viewer', namespaces: undefined }]);
    for (const [wrong, why] of [
      [{ ...good, namespaces: 'shop' }, /namespaces must be a list/],
      [{ ...good, namespaces: null }, /namespaces must be a list/],
      [{ ...good, namespaces: ['*'] }, /namespaces must be a list/],
      [{ ...good, namespaces: [1] }, /namespaces must be a list/],
      [{ subject, role: 'operator', namespace: 'shop' }, /"namespace" is not known/],
      [{ ...good, role: 'Admin' }, /role must be one of/],
      [{ ...good, role: ['admin'] }, /role must be one of/],
      [{ ...good, subject: 'ops/deployer' }, /subject must be a SPIFFE id/],
      ['admin', /not an object/],
      [null, /not an object/],
    ] as const) {
      assert.match(problemOf(wrong) ?? 'accepted', why, JSON.stringify(wrong));
      assert.deepEqual(readAccessBindings(JSON.stringify([wrong])).bindings, [], JSON.stringify(wrong));
    }
    const twice = readAccessBindings(JSON.stringify([good, { subject, role: 'admin' }]));
    assert.deepEqual([twice.bindings.length, twice.problems], [1, ['entry 1: its subject has a role already']]);
    assert.throws(() => readAccessBindings('a: b'), /a list/);
  });

  it('are refused when they are written with such an entry', () => {
    const configMap = (bindings: string, name = 'mizzen-access') => ({ kind: 'ConfigMap', metadata: { namespace: 'istio-system', name }, data: { bindings } });
    assert.equal(refusedBindings(configMap(`- { subject: "${subject}", role: viewer, namespaces: [shop] }`)), undefined);
    assert.match(refusedBindings(configMap(`- { subject: "${subject}", role: viewer, namespaces: shop }`)) ?? '', /data.bindings: entry 0: namespaces must be/);
    assert.match(refusedBindings(configMap(`- { subject: "${subject}", role: viewer, namespaces: }`)) ?? '', /namespaces must be/);
    assert.match(refusedBindings(configMap('{')) ?? '', /data.bindings/);
    assert.equal(refusedBindings(configMap('{', 'other')), undefined);
  });
});

describe('limits of the API', () => {
  it('reads selectors as Kubernetes does, in time that grows with their length', () => {
    const matches = (selector: string, labels: Record<string, string>) => labelSelector(selector)!(labelled(labels));
    assert.equal(matches('a=b, c != d ,e in (f, g),!h', { a: 'b', e: 'g' }), true);
    assert.equal(matches('a  ==  b', { a: 'b' }), true);
    assert.equal(matches('a notin (b)', { a: 'b' }), false);
    assert.equal(matches(' ! a', {}), true);
    const startedAt = performance.now();
    assert.throws(() => labelSelector(`a${' '.repeat(100_000)}?`), /unable to parse/);
    assert.throws(() => labelSelector(`a in (${' '.repeat(100_000)}`), /unable to parse/);
    assert.ok(performance.now() - startedAt < 500, 'blanks are not tried in every combination');
    assert.throws(() => labelSelector('a,'.repeat(10_000)), /at most 200 requirements/);
    assert.throws(() => fieldSelector('a=b,'.repeat(10_000)), /at most 200 requirements/);
  });

  it('refuses bodies that are nested deeper than any object is', async () => {
    const body = (text: string) => readBody(Object.assign(Readable.from([Buffer.from(text)]), { headers: {} }) as unknown as IncomingMessage);
    const nested = (levels: number) => `${'{"a":'.repeat(levels)}1${'}'.repeat(levels)}`;
    await assert.rejects(body(nested(100_000)), /nested more than 100 levels/);
    await assert.rejects(body(`${'['.repeat(200)}${']'.repeat(200)}`), /nested more than 100 levels/);
    assert.ok(await body(nested(90)));
  });

  it('forgets old changes of the store by their size', async () => {
    const store = new SqliteStore(':memory:', { maxHistoryBytes: 10_000 });
    const key = { group: '', kind: 'ConfigMap', namespace: 'default', name: 'x' };
    const origin = { source: 'api', name: 'test' } as const;
    const write = async (bytes: number) => {
      const before = (await store.get(key))?.revision;
      const resource = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'x', namespace: 'default' }, data: { a: 'x'.repeat(bytes) } };
      await store.put(key, resource as unknown as Resource, origin, before ?? 'absent');
    };
    const first = store.revision();
    for (let i = 0; i < 5; i++) await write(100);
    const seen: number[] = [];
    store.watch(first, ({ stored }) => void seen.push(stored.revision))();
    assert.equal(seen.length, 5);
    for (let i = 0; i < 5; i++) await write(5_000);
    assert.throws(() => store.watch(first, () => {}), /too old/);
    await store.remove(key);
    await store.close();
  });

  it('ends the response that holds most when all hold too much, and one that is not read', () => {
    let now = 0;
    const unread = new UnreadResponses({ maxUnreadBytes: 1_000, maxStalledMs: 60_000 }, () => now);
    const response = (writableLength: number) => {
      const one = Object.assign(new EventEmitter(), {
        writableLength,
        destroyed: false,
        socket: new EventEmitter(),
        destroy: () => void (one.destroyed = true),
      });
      unread.wrote(one as unknown as ServerResponse);
      return one;
    };
    const [small, large] = [response(100), response(700)];
    response(300);
    assert.deepEqual([small.destroyed, large.destroyed, unread.bytes], [false, true, 400]);
    for (now = 15_000; now <= 60_000; now += 15_000) {
      small.writableLength--;
      unread.sweep();
    }
    assert.equal(small.destroyed, false, 'something is read of it');
    assert.equal(unread.ended, 2, 'the other made no progress for a minute');
    small.emit('close');
    assert.equal(unread.bytes, 0);
    unread.close();
  });

  it('serves the requests of one connection in turn, and closes one that pipelines without end', async () => {
    const turns = new RequestTurns();
    const socket = Object.assign(new EventEmitter(), { destroyed: false, destroy: () => void (socket.destroyed = true) });
    const responses = Array.from({ length: 11 }, () => Object.assign(new EventEmitter(), { destroyed: false }));
    const started: number[] = [];
    const all = responses.map((response, i) =>
      turns.next({ socket } as unknown as IncomingMessage, response as unknown as ServerResponse).then((isNext) => isNext && started.push(i)),
    );
    const settle = () => new Promise((resolve) => setImmediate(resolve));
    await settle();
    assert.deepEqual(started, [0]);
    assert.equal(socket.destroyed, true, 'the eleventh');
    responses[0]!.emit('close');
    await settle();
    assert.deepEqual(started, [0, 1]);
    for (const response of responses) response.emit('close');
    await Promise.all(all);
  });

  it('ends a watch whose caller has lost the right to it', async (context) => {
    context.mock.timers.enable({ apis: ['setInterval', 'setTimeout'] });
    const store = new SqliteStore(':memory:');
    let lines = '';
    let refusal: ApiError | undefined;
    const response = Object.assign(new EventEmitter(), {
      ...{ writableEnded: false, writableLength: 0, destroyed: false, writeHead: () => {}, flushHeaders: () => {} },
      write: (text: string) => void (lines += text),
      end: () => void (response.writableEnded = true),
      destroy: () => void (response.destroyed = true),
    });
    await watchResources({
      request: { socket: { setTimeout: () => {} } } as unknown as IncomingMessage,
      response: response as unknown as ServerResponse,
      url: new URL('https://x/?watch=true'),
      ...{ kind: findKind('', 'ConfigMap')!, version: 'v1', namespace: 'default', predicate: () => true, store, table: undefined },
      ...{ refusal: async () => refusal, onWrite: () => {}, now: () => new Date(), present: (resource: Resource) => resource },
    });
    const settle = async () => {
      for (let i = 0; i < 5; i++) await Promise.resolve();
    };
    context.mock.timers.tick(5_000);
    await settle();
    assert.equal(response.writableEnded, false);
    refusal = new ApiError(401, 'Unauthorized', 'the token has expired');
    context.mock.timers.tick(5_000);
    await settle();
    assert.equal(response.writableEnded, true);
    assert.match(lines, /"type":"ERROR".*the token has expired/);
    const resource = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'x', namespace: 'default' } } as unknown as Resource;
    await store.put({ group: '', kind: 'ConfigMap', namespace: 'default', name: 'x' }, resource, { source: 'api', name: 'x' }, 'absent');
    assert.ok(!lines.includes('ADDED'), 'nothing follows');
    response.emit('close');
    await store.close();
  });
});
