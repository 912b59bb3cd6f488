import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { readRequestHead } from '../http1/read-request-head.ts';
import { HeaderField } from '../http2/hpack/header-field.ts';
import { RequestFields } from '../http2/received-fields.ts';
import { defaultHeadLimits } from '../message/head-limits.ts';
import { foldedName, OwnedHeaderRules } from '../message/owned-headers.ts';
import { RequestHead } from '../message/request-head.ts';
import { PeerMetadataReader } from '../telemetry/peer-metadata.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Client } from './downstream.ts';
import { applyForwardingHeaders } from './forwarding-headers.ts';

const forged = 'forged';

/** A request with these fields, as each version of HTTP brings it. */
function received(version: 1 | 2, fields: readonly (readonly [string, string])[]): RequestHead {
  if (version === 1) {
    const head = readRequestHead(`GET / HTTP/1.1\r\nhost: a\r\n${fields.map(([name, value]) => `${name}:${value}\r\n`).join('')}`, defaultHeadLimits);
    assert.ok(head instanceof RequestHead, JSON.stringify(head));
    return head;
  }
  const reader = new RequestFields(defaultHeadLimits);
  reader.begin();
  const all = [
    [':method', 'GET'],
    [':scheme', 'http'],
    [':path', '/'],
    [':authority', 'a'],
    ...fields.map(([name, value]) => [name.toLowerCase(), value.trim()]),
  ];
  for (const [name, value] of all) reader.onField(new HeaderField(name!, value!));
  const head = reader.finish(true);
  assert.ok(head instanceof RequestHead, JSON.stringify(head));
  return head;
}

function settings(direction: ConnectionSettings['direction'], isFromApplication = false): ConnectionSettings {
  return {
    direction,
    isFromApplication,
    isTls: false,
    usesRemoteAddress: direction === 'gateway',
    preservesRequestId: direction !== 'gateway',
    forwardClientCert: direction === 'inbound' ? 'appendForward' : 'sanitizeSet',
    context: { peers: new PeerMetadataReader(), self: { principal: 'spiffe://cluster.local/ns/a/sa/self' } },
  } as unknown as ConnectionSettings;
}

const client = (uri?: string): Client =>
  ({
    info: { remoteAddress: '10.0.0.1' },
    peer: uri === undefined ? undefined : { uri, hash: 'h', subject: '' },
    forwardedCert: undefined,
  }) as unknown as Client;

/** Other ways to write a name, of which CGI makes the same variable: case, `_`, `.` and other separators, some and all of them. */
function* spellings(name: string): Generator<string> {
  yield name;
  yield name.toUpperCase();
  yield name.replace(/\b[a-z]/g, (letter) => letter.toUpperCase());
  const dashes = [...name].flatMap((character, i) => (character === '-' ? [i] : []));
  for (const separator of ['_', '.', '~', '!', '|'])
    for (let mask = 1; mask < 1 << Math.min(dashes.length, 4); mask++) {
      const spelt = [...name].map((character, i) => (character === '-' && mask & (1 << dashes.indexOf(i)) ? separator : character)).join('');
      yield spelt;
      yield spelt.toUpperCase();
    }
}

const owned = {
  mesh: ['x-mizzen-consumer', 'x-mizzen-consumer-groups', 'x-mizzen-publisher', 'x-envoy-retry-on', 'x-envoy-original-path', 'x-envoy-peer-metadata'],
  origin: [
    ...['x-forwarded-for', 'x-forwarded-proto', 'x-forwarded-host', 'x-forwarded-port', 'x-forwarded-prefix', 'x-forwarded-client-cert', 'x-forwarded'],
    ...['forwarded', 'x-real-ip', 'x-original-url', 'x-rewrite-url', 'true-client-ip'],
  ],
};

const shapes = (name: string): (readonly (readonly [string, string])[])[] => [
  [[name, forged]],
  [[name, `  ${forged}\t`]],
  [
    [name, forged],
    ['x-other', 'kept'],
    [name, forged],
  ],
];

describe('owned headers', () => {
  const outside = [
    ['a gateway', settings('gateway'), client()],
    ['a gateway, from a client with a certificate', settings('gateway'), client('spiffe://elsewhere/a')],
    ['a sidecar, in plain text', settings('inbound'), client()],
  ] as const;

  it('do not pass from outside the mesh in any spelling, repeated or padded, over either version of HTTP', () => {
    let tried = 0;
    for (const [place, setting, peer] of outside)
      for (const name of [...owned.mesh, ...owned.origin])
        for (const spelling of spellings(name))
          for (const fields of shapes(spelling))
            for (const version of [1, 2] as const) {
              const head = received(version, fields);
              applyForwardingHeaders(head, peer, setting);
              assert.ok(!head.headers.serialize().includes(forged), `${place}: ${spelling} over HTTP/${version}: ${head.headers.serialize()}`);
              assert.equal(head.headers.names.filter((field) => foldedName(field) === 'x-forwarded-for').length, 1);
              tried++;
            }
    assert.ok(tried > 10_000, `${tried} cases`);
  });

  it('do not pass from an application through its own sidecar, where the mesh would be taken for their author', () => {
    for (const name of [...owned.mesh, 'x-forwarded-for', 'x-forwarded-client-cert'])
      for (const spelling of spellings(name))
        for (const version of [1, 2] as const) {
          const head = received(version, [[spelling, forged]]);
          applyForwardingHeaders(head, client(), settings('outbound', true));
          assert.ok(!head.headers.serialize().includes(forged), `${spelling}: ${head.headers.serialize()}`);
        }
    const head = received(1, [['x-forwarded-proto', 'https']]);
    applyForwardingHeaders(head, client(), settings('outbound', true));
    assert.equal(head.headers.get('x-forwarded-proto'), 'https');
  });

  it('pass from a certificate of the mesh only as far as its identity is entitled, in no other spelling, over either version of HTTP', () => {
    const id = (account: string) => `spiffe://cluster.local/ns/a/sa/${account}`;
    const rules = new OwnedHeaderRules([id('gateway'), id('api-gateway')], [id('api-gateway')], [id('canary')], ['X-User-Email', 'tenant']);
    const ofConsumers = ['x-mizzen-consumer', 'x-mizzen-consumer-groups', 'x-user-email', 'tenant'];
    const ofMessages = ['x-mizzen-publisher', 'x-mizzen-original-publisher'];
    const ofOrigin = ['x-forwarded-for', 'x-forwarded-client-cert'];
    const passing: readonly (readonly [string, OwnedHeaderRules | undefined, readonly string[]])[] = [
      ['gateway', rules, ofOrigin],
      ['api-gateway', rules, [...ofOrigin, ...ofConsumers]],
      ['canary', rules, ofMessages],
      ['thief', rules, []],
      ['gateway/x', rules, []],
      ['GATEWAY', rules, []],
      // A configuration without these rules, an Envoy's: it says itself what becomes of forwarded headers.
      ['gateway', undefined, [...ofOrigin, 'x-user-email', 'tenant']],
    ];
    let tried = 0;
    for (const [account, setting, passed] of passing)
      for (const name of [...ofConsumers, ...ofMessages, ...ofOrigin])
        for (const spelling of spellings(name))
          for (const fields of shapes(spelling))
            for (const version of [1, 2] as const) {
              const head = received(version, fields);
              applyForwardingHeaders(head, client(id(account)), { ...settings('inbound'), ownedHeaders: setting });
              const isPlain = spelling.toLowerCase() === name;
              // An alias of a claim's header is removed where the header is.
              const isPassed = passed.includes(name) && (isPlain || ['x-user-email', 'tenant'].includes(name));
              assert.equal(head.headers.serialize().includes(forged), isPassed, `${account}: ${spelling} over HTTP/${version}: ${head.headers.serialize()}`);
              tried++;
            }
    assert.ok(tried > 5_000, `${tried} cases`);
  });

  it('pass from a workload of the mesh in their own spelling only', () => {
    for (const name of ['x-forwarded-for', 'x-forwarded-proto', 'x-envoy-attempt-count'])
      for (const spelling of spellings(name)) {
        const head = received(1, [
          [name, 'good'],
          [spelling, spelling.toLowerCase() === name ? 'good' : forged],
        ]);
        applyForwardingHeaders(head, client('spiffe://cluster.local/ns/a/sa/b'), settings('inbound'));
        assert.ok(!head.headers.serialize().includes(forged), spelling);
        assert.equal(head.headers.get(name), 'good');
      }
  });

  it('are removed in every spelling when a filter sets or removes them', () => {
    for (const name of ['x-user', 'x-user-email', 'x-tenant-id'])
      for (const spelling of spellings(name))
        for (const version of [1, 2] as const) {
          const set = received(version, [
            [spelling, forged],
            ['x-more', 'kept'],
          ]).headers;
          set.set(name, 'proved');
          assert.ok(!set.serialize().includes(forged), spelling);
          const removed = received(version, [
            [spelling, forged],
            ['x-more', 'kept'],
          ]).headers;
          removed.remove(name);
          assert.deepEqual(
            removed.names.filter((field) => field !== 'host'),
            ['x-more'],
            spelling,
          );
        }
    const underscored = received(1, [['x-user', forged]]).headers;
    underscored.set('x_user', 'proved');
    assert.ok(!underscored.serialize().includes(forged));
  });

  it('leaves names with underscores alone that nothing owns', () => {
    const head = received(1, [
      ['user_id', '7'],
      ['X_Custom.Name', 'a'],
    ]);
    applyForwardingHeaders(head, client(), settings('gateway'));
    assert.equal(head.headers.get('user_id'), '7');
    assert.equal(head.headers.get('x_custom.name'), 'a');
  });
});
