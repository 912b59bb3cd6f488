import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { logErrorsTo, silentLogger } from '@mizzen/common';
import { DnsAddresses, type Lookup } from './dns-addresses.ts';

describe('addresses behind a name', () => {
  const v4 = (address: string) => ({ address, family: 4 });
  const v6 = (address: string) => ({ address, family: 6 });

  /** The changes that are told while the answers last. */
  async function told(answers: readonly (readonly ReturnType<typeof v4>[] | 'fails')[], family: 'v4' | 'v6' | 'all' | 'preferV4' = 'preferV4') {
    const changes: (readonly string[] | undefined)[] = [];
    let asked = 0;
    let done!: () => void;
    const finished = new Promise<void>((resolve) => (done = resolve));
    const lookup: Lookup = async (_name, options) => {
      const answer = answers[asked++];
      if (answer === undefined) done();
      if (answer === undefined || answer === 'fails') throw new Error('ENOTFOUND');
      return answer.filter((one) => options.family === 0 || one.family === options.family);
    };
    const addresses = new DnsAddresses(['db.test'], { refreshMs: 1, respectsTtl: false, family }, (found) => changes.push(found.get('db.test')), lookup);
    await finished;
    addresses.close();
    return changes;
  }

  it('are told when they change, not in what order they come', async () => {
    assert.deepEqual(await told([[v4('10.0.0.2'), v4('10.0.0.1')], [v4('10.0.0.1'), v4('10.0.0.2')], [v4('10.0.0.3')]]), [
      ['10.0.0.1', '10.0.0.2'],
      ['10.0.0.3'],
    ]);
  });

  it('stay when the name cannot be resolved for a while', async () => {
    assert.deepEqual(await told(['fails', [v4('10.0.0.1')], 'fails', [], [v4('10.0.0.1')]]), [['10.0.0.1']]);
  });

  it('are passed on again when they could not be used, although they are still the same', async () => {
    logErrorsTo(silentLogger);
    let attempts = 0;
    let done!: () => void;
    const used = new Promise<void>((resolve) => (done = resolve));
    const use = () => {
      if (++attempts === 1) throw new Error('broken');
      done();
    };
    const addresses = new DnsAddresses(['db.test'], { refreshMs: 1, respectsTtl: false, family: 'v4' }, use, async () => [v4('10.0.0.1')]);
    await used;
    addresses.close();
    assert.equal(attempts, 2);
  });

  it('are looked up again when their records expire, and no more than once a second', async (test) => {
    const { mock } = test;
    mock.timers.enable({ apis: ['setTimeout'] });
    const ttls = [5, undefined, 0, 100_000];
    let asked = 0;
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    const lookup: Lookup = async () => {
      asked++;
      return [v4('10.0.0.1')];
    };
    const addresses = new DnsAddresses(
      ['db.test'],
      { refreshMs: 60_000, respectsTtl: true, family: 'v4' },
      () => {},
      lookup,
      async () => ttls[asked - 1],
    );
    await turn();
    for (const waitMs of [5_000, 60_000, 60_000, 3_600_000]) {
      const before = asked;
      mock.timers.tick(waitMs - 1);
      await turn();
      assert.equal(asked, before, `not within ${waitMs} ms`);
      mock.timers.tick(1);
      await turn();
      assert.equal(asked, before + 1, `after ${waitMs} ms`);
    }
    addresses.close();
  });

  it('are of the versions of IP that are wanted', async () => {
    const both = [v6('fd00::1'), v4('10.0.0.1')];
    assert.deepEqual(await told([both]), [['10.0.0.1']]);
    assert.deepEqual(await told([[v6('fd00::1')]]), [['fd00::1']]);
    assert.deepEqual(await told([both], 'all'), [['10.0.0.1', 'fd00::1']]);
    assert.deepEqual(await told([both], 'v6'), [['fd00::1']]);
  });
});
