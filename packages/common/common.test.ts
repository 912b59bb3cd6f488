import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Backoff, closestName, describeOrigin, formatDurationMs, Logger, maxTimerMs, parseDurationMs, timerMs } from './index.ts';

describe('small things that everything uses', () => {
  it('a duration that is given to a timer is one that a timer can wait', () => {
    const given = [-1, 0, 1.5, maxTimerMs, maxTimerMs + 1, 1e15, Number.POSITIVE_INFINITY, Number.NaN];
    assert.deepEqual(given.map(timerMs), [0, 0, 1.5, maxTimerMs, maxTimerMs, maxTimerMs, maxTimerMs, maxTimerMs]);
    for (const ms of given) clearTimeout(setTimeout(() => {}, timerMs(ms)));
  });

  it('reads durations as Go writes them', () => {
    for (const [text, ms] of [
      ['7s', 7_000],
      ['250ms', 250],
      ['1h30m', 5_400_000],
      ['0.5s', 500],
      ['1m1.5s', 61_500],
      ['0', 0],
      ['0s', 0],
    ] as const)
      assert.equal(parseDurationMs(text), ms, text);
    for (const text of ['7', 's', '7 s', '-1s', '1d', '', '1s ', '9'.repeat(400) + 's']) assert.equal(parseDurationMs(text), undefined, text);
    assert.deepEqual([450, 7_000, 125_000, 10_800_000, 345_600_000].map(formatDurationMs), ['450ms', '7s', '2m5s', '3h', '4d']);
  });

  it('suggests a name only when it is near', () => {
    assert.equal(closestName('prefx', ['exact', 'prefix', 'regex']), 'prefix');
    assert.equal(closestName('destinaton', ['destination', 'weight']), 'destination');
    assert.equal(closestName('zzz', ['exact', 'prefix']), undefined);
  });

  it('doubles its waits up to a ceiling, between half and all of each', () => {
    const low = new Backoff(100, 1_000, () => 0);
    const high = new Backoff(100, 1_000, () => 1);
    assert.deepEqual([low.nextMs(), low.nextMs(), low.nextMs(), low.nextMs(), low.nextMs()], [50, 100, 200, 400, 500]);
    assert.deepEqual([high.nextMs(), high.nextMs()], [100, 200]);
    low.reset();
    assert.equal(low.nextMs(), 50);
  });

  it('lets no peer begin a new log line', () => {
    const lines: string[] = [];
    new Logger('test', 'info', (line) => lines.push(line)).info('a\nb\x1b[31m', { name: 'x y\n' });
    assert.match(lines[0]!, /^\S+ info {2}test: a\\x0ab\\x1b\[31m name="x y\\n"\n$/);
  });

  it('tells where a resource came from', () => {
    assert.equal(describeOrigin({ source: 'file', name: 'a.yaml', line: 3, column: 1, lines: { 'spec.http[0]': 9 } }, 'spec.http[0]'), 'a.yaml:9');
    assert.equal(
      describeOrigin({ source: 'file', name: 'a.yaml', line: 3, column: 1, lines: { 'spec.http[0]': 9 } }, 'spec.http[0].route[1].destination'),
      'a.yaml:9',
    );
    assert.equal(describeOrigin({ source: 'file', name: 'a.yaml', line: 3, column: 1, lines: { 'spec.http[0]': 9 } }, 'spec.hosts'), 'a.yaml:3:1');
    assert.equal(describeOrigin({ source: 'file', name: 'a.yaml', line: 3, column: 1 }), 'a.yaml:3:1');
    assert.equal(describeOrigin({ source: 'api', name: 'kubectl' }), 'kubectl (api)');
  });
});
