import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { BrokerProcess } from './support/brokers.ts';
import { RunningExample } from './support/example.ts';
import { call, until } from './support/http.ts';
import { skipWithout } from './support/requirements.ts';

/** The example as a user runs it: three services in two languages, a canary, and the broker changed under them. */
describe('the orders example', { skip: skipWithout('python3') }, () => {
  let example: RunningExample;
  let folder: string;
  let lines: readonly string[];
  const sent = async (version = 'v1') =>
    JSON.parse((await call({ port: 8081, path: '/sent', headers: { host: 'shop.test', 'x-version': version } })).body) as {
      by: string;
      order: number;
      text: string;
      publisher: string;
    }[];
  const order = async (value: object, headers: Record<string, string> = {}) => {
    const answer = await call({ port: 8081, method: 'POST', path: '/orders', headers: { host: 'shop.test', ...headers }, body: JSON.stringify(value) });
    assert.equal(answer.status, 202, answer.body);
    return (JSON.parse(answer.body) as { id: number }).id;
  };

  before(async () => {
    example = await RunningExample.start('orders');
    ({ folder, lines } = example);
  });
  after(() => example.close());

  it('starts without a word of trouble', () => {
    assert.deepEqual(
      // A busy machine is no trouble of the mesh.
      lines.filter((line) => /error|warn/i.test(line) && !line.includes('overload:')),
      [],
    );
  });

  it('carries an order from one service to the third, with identities on its way', async () => {
    const id = await order({ customer: 'ada', amount: 12 });
    const letters = await until(
      'the letter',
      async () => [...(await sent()), ...(await sent('v2'))],
      (all) => all.some((letter) => letter.order === id),
    );
    const letter = letters.find((one) => one.order === id)!;
    assert.match(letter.text, /order \d+ \(12\) charged$/);
    assert.equal(letter.publisher, 'spiffe://cluster.local/ns/default/sa/payment');
  });

  it('routes by content, and gives the canary what asks for it', async () => {
    const id = await order({ customer: 'bob', amount: 2000 }, { 'x-canary': 'yes' });
    const letters = await until(
      'the letter',
      () => sent('v2'),
      (all) => all.some((one) => one.order === id),
    );
    assert.match(letters.find((one) => one.order === id)!.text, /^Dear bob, good news: .* waits for review$/);
  });

  it('goes on over another broker when one resource is changed', { skip: skipWithout('nats-server') }, async () => {
    const nats = await BrokerProcess.nats();
    try {
      const file = join(folder, 'broker.yaml');
      const before = readFileSync(file, 'utf8');
      writeFileSync(
        file,
        before.replace(
          'spec: { type: pubsub.mizzen, version: v1 }',
          `spec: { type: pubsub.jetstream, version: v1, metadata: [{ name: natsURL, value: "nats://127.0.0.1:${nats.port}" }] }`,
        ),
      );
      const { connect } = await import('@nats-io/transport-node');
      const { jetstreamManager } = await import('@nats-io/jetstream');
      const nc = await connect({ servers: `127.0.0.1:${nats.port}` });
      const manager = await jetstreamManager(nc);
      await until(
        'the consumers are there',
        async () => (await manager.streams.info('mizzen')).state.consumer_count,
        (count) => (count ?? 0) >= 2,
        60_000,
      );
      const id = await order({ customer: 'eve', amount: 3 });
      await until(
        'the letter',
        async () => [...(await sent()), ...(await sent('v2'))],
        (all) => all.some((one) => one.order === id),
        60_000,
      );
      assert.ok((await manager.streams.info('mizzen')).state.messages >= 2);
      await nc.close();
    } finally {
      await nats.close();
    }
  });
});
