// A reporter of node:test that writes how many tests have passed and failed, as JSON: scripts/test.mjs adds up its runs.
export default async function* totals(source) {
  for await (const { type, data } of source) if (type === 'test:summary' && data.file === undefined) yield JSON.stringify(data.counts);
}
