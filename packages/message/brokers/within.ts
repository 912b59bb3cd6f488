/** The promise's outcome, or a rejection when it has none after so long. */
export async function within<Value>(promise: Promise<Value>, ms: number): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_resolve, reject) => (timer = setTimeout(() => reject(new Error(`no connection within ${ms} ms`)), ms))),
    ]);
  } finally {
    clearTimeout(timer);
  }
}
