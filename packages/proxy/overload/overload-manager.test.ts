import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { defaultOverloadSettings, type Meters, OverloadManager, oldGenerationLimitBytes } from './overload-manager.ts';
import { OverloadState } from './overload-state.ts';

const mib = 1024 ** 2;

describe('the overload manager', () => {
  function manager(held: readonly number[] = []) {
    const meters: Meters & Record<'resident' | 'external' | 'heap' | 'garbage' | 'time' | 'collections', number> = {
      ...{ resident: 0, external: 0, heap: 0, garbage: 0, time: 0, collections: 0 },
      maxHeapBytes: 64 * mib,
      residentBytes: () => meters.resident,
      externalBytes: () => meters.external,
      heapBytes: () => meters.heap + meters.garbage,
      collect: () => {
        meters.collections++;
        meters.garbage = 0;
      },
      now: () => meters.time,
    };
    const state = new OverloadState(Number.POSITIVE_INFINITY);
    const reset: number[] = [];
    const overload = new OverloadManager({ ...defaultOverloadSettings, maxMemoryBytes: 1024 * mib }, state, {
      held: (visit) => held.forEach((bytes) => visit(bytes, () => reset.push(bytes))),
      onReset: () => {},
      logger: silentLogger,
      meters,
    });
    return { meters, state, overload, reset };
  }
  const actions = ({ disablesKeepAlive, refusesRequests, refusesConnections, resetsStreams }: OverloadState) =>
    [disablesKeepAlive, refusesRequests, refusesConnections, resetsStreams].map(Number).join('');

  it('begins each action before V8 gives up at 80 % of the old generation, and ends it again', () => {
    const { meters, state, overload } = manager();
    const found = [34, 35, 37, 38, 38.5, 20].map((used) => {
      meters.heap = used * mib;
      overload.look();
      return actions(state);
    });
    assert.deepEqual(found, ['0000', '1000', '1100', '1110', '1111', '0000']);
  });

  it('collects garbage before it acts on the heap, at most once a second', () => {
    const { meters, state, overload } = manager();
    meters.heap = 20 * mib;
    meters.garbage = 40 * mib;
    overload.look();
    assert.deepEqual([actions(state), meters.collections], ['0000', 1]);
    meters.garbage = 40 * mib;
    overload.look();
    assert.deepEqual([actions(state), meters.collections], ['1111', 1]);
    meters.time = 1_001;
    overload.look();
    assert.deepEqual([actions(state), meters.collections], ['0000', 2]);
  });

  it('looks at the heap during a burst of connections', () => {
    const { meters, state } = manager();
    meters.heap = 60 * mib;
    const accepted = Array.from({ length: 1_000 }, () => state.acceptsConnection()).filter(Boolean).length;
    assert.ok(accepted < 64, `${accepted} connections`);
  });

  it('resets the streams that hold the most, a tenth at a time, while buffers are what takes the memory', () => {
    const held = Array.from({ length: 30 }, (_, i) => i * 16 * 1024);
    const { meters, overload, reset } = manager(held);
    meters.resident = 1024 * mib;
    overload.look();
    assert.deepEqual(reset, []);
    meters.external = 500 * mib;
    overload.look();
    assert.deepEqual(reset, held.slice(-3).reverse());
  });

  it('knows the limit of the old generation from flags', () => {
    assert.equal(oldGenerationLimitBytes(['--max-old-space-size=64']), 64 * mib);
    assert.equal(oldGenerationLimitBytes(['--max_old_space_size=64', '--max-old-space-size=128']), 128 * mib);
    assert.ok(oldGenerationLimitBytes([]) > 64 * mib);
  });
});
