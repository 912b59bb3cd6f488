import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { clearFaults, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { ConfigurationKeeper, type ConfigurationKeeperOptions } from './configuration-keeper.ts';

describe('the keeper of a configuration', () => {
  function keeper() {
    const written: unknown[] = [];
    const file = { exists: false, folder: '', read: () => ({ kind: 'none' }), write: async (configuration: unknown) => void written.push(configuration) };
    const made = new ConfigurationKeeper({
      file: file as unknown as ConfigurationKeeperOptions['file'],
      state: { dump: () => [], isSettled: true },
      wanted: () => [],
      identity: { current: () => ({ pair: { cert: '', key: '' }, root: '' }), restore: () => {} } as unknown as ConfigurationKeeperOptions['identity'],
      accept: () => {},
      control: 'control:15012',
      counters: new ProxyCounters(),
      logger: silentLogger,
    });
    for (const type of ['cluster', 'listener'] as const) made.accepted(type, []);
    return { keeper: made, written };
  }

  it('writes what has changed before it closes', async () => {
    const { keeper: closed, written } = keeper();
    await closed.close();
    assert.equal(written.length, 1);
  });

  it('writes a change a second after the turn that should have written it has thrown', (context) => {
    context.mock.timers.enable({ apis: ['setTimeout'] });
    logErrorsTo(silentLogger);
    const before = internalErrors().get('configuration.keep') ?? 0;
    injectFault('configuration.keep', 1);
    const { written } = keeper();
    context.mock.timers.tick(100);
    assert.deepEqual([internalErrors().get('configuration.keep'), written.length], [before + 1, 0]);
    context.mock.timers.tick(1_000);
    assert.equal(written.length, 1);
    clearFaults();
  });

  it('writes nothing after another process has taken over', async () => {
    const { keeper: replaced, written } = keeper();
    await replaced.standBack();
    replaced.accepted('cluster', []);
    await replaced.close();
    assert.equal(written.length, 0);
  });
});
