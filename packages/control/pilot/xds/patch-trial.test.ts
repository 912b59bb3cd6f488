import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { DiscoveryType } from '@mizzen/envoy-api';
import type { Patch } from '../envoy-filters/patches.ts';
import { PatchTrial } from './patch-trial.ts';

const patchOf = (name: string, revision: number): Patch =>
  ({ filter: { namespace: 'default', name, revision }, index: 0, applyTo: 'HTTP_FILTER', operation: 'ADD', match: {}, value: undefined }) as never;

/** A proxy that refuses a type while one of these filters is in effect; until nothing changes any more. */
function settle(trial: PatchTrial, patches: readonly Patch[], isBad: (name: string, type: DiscoveryType) => boolean): string[] {
  const types: DiscoveryType[] = ['cluster', 'listener', 'route'];
  for (let step = 0; step < 100; step++) {
    const names = trial.allowed(patches).map(({ filter }) => filter.name);
    let changed = false;
    for (const type of types) {
      if (names.some((name) => isBad(name, type))) {
        if (trial.refused(type, `bad ${type}`, patches)) changed = true;
      } else if (trial.accepted(type)) changed = true;
      if (changed) break;
    }
    if (!changed) return names;
  }
  throw new Error('does not settle');
}

describe('the trial of EnvoyFilters that a proxy refuses', () => {
  const all = [patchOf('limits', 1), patchOf('routes', 2), patchOf('broken', 3), patchOf('newest', 4)];

  it('leaves out the cause alone, whatever its age', () => {
    for (const bad of ['limits', 'routes', 'broken', 'newest']) {
      const trial = new PatchTrial();
      const left = settle(trial, all, (name) => name === bad);
      assert.deepEqual(
        left,
        all.map(({ filter }) => filter.name).filter((name) => name !== bad),
      );
      assert.deepEqual(
        trial.leftOut.map(({ filter, reason }) => [filter.name, reason]),
        [[bad, 'bad cluster']],
      );
    }
  });

  it('leaves out several causes, of one type or of several', () => {
    const trial = new PatchTrial();
    assert.deepEqual(
      settle(trial, all, (name, type) => (name === 'limits' && type === 'route') || (name === 'newest' && type === 'listener')),
      ['routes', 'broken'],
    );
  });

  it('brings all filters back when the proxy refuses without them, too', () => {
    const trial = new PatchTrial();
    for (let i = 0; i < 10; i++) trial.refused('listener', 'no socket', all);
    assert.equal(trial.refused('listener', 'no socket', all), false);
    assert.equal(trial.allowed(all).length, all.length);
    assert.deepEqual(trial.leftOut, []);
  });

  it('tries a new version of a filter', () => {
    const trial = new PatchTrial();
    settle(trial, all, (name) => name === 'broken');
    const mended = [...all.filter(({ filter }) => filter.name !== 'broken'), patchOf('broken', 5)];
    assert.equal(trial.allowed(mended).length, 4);
  });
});
