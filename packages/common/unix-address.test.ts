import assert from 'node:assert/strict';
import { it } from 'node:test';
import { isUnixPath, maxUnixPathBytes, unixPathOf, unixPathProblem } from './unix-address.ts';

it('the path of a Unix socket is absolute, names a file, and has the length that the kernel allows', () => {
  for (const [address, problem] of [
    ['unix:///run/shop/mesh.sock', undefined],
    ['unix://@shop', undefined],
    [`unix:///${'x'.repeat(maxUnixPathBytes - 1)}`, undefined],
    [`unix:///${'x'.repeat(maxUnixPathBytes)}`, /at most \d+ bytes, this one has \d+/],
    [`unix:///${'é'.repeat(maxUnixPathBytes / 2 + 1)}`, /at most \d+ bytes/],
    [`unix://@${'x'.repeat(maxUnixPathBytes)}`, /at most \d+ bytes/],
    ['unix://@', /needs a name/],
    ['unix://', /must be absolute/],
    ['unix://run/x', /must be absolute/],
    ['unix:///run/', /must be absolute and name a file/],
    ['unix:///run/../etc/x', /must not contain/],
    ['unix:///run//x', /must not contain/],
    ['unix:///./x', /must not contain/],
    ['unix:///run/a\nb', /control characters/],
    ['unix:///run/a\0b', /control characters/],
    ['unix://@a\0b', /control characters/],
  ] as const) {
    const found = unixPathProblem(unixPathOf(address) ?? '');
    if (problem === undefined) assert.equal(found, undefined, address);
    else assert.match(found ?? '', problem, JSON.stringify(address));
  }
  assert.equal(unixPathOf('unix:/run/x'), undefined);
  assert.deepEqual(['/run/x', '@x', '127.0.0.1', '::1', 'run/x'].map(isUnixPath), [true, true, false, false, false]);
});
