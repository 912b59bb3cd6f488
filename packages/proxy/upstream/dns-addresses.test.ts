import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
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
    const addresses = new DnsAddresses(['db.test'], { refreshMs: 1, family }, (found) => changes.push(found.get('db.test')), lookup);
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

  it('are of the versions of IP that are wanted', async () => {
    const both = [v6('fd00::1'), v4('10.0.0.1')];
    assert.deepEqual(await told([both]), [['10.0.0.1']]);
    assert.deepEqual(await told([[v6('fd00::1')]]), [['fd00::1']]);
    assert.deepEqual(await told([both], 'all'), [['10.0.0.1', 'fd00::1']]);
    assert.deepEqual(await told([both], 'v6'), [['fd00::1']]);
  });
});
