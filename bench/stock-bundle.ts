/** The stock node as one file, bundled as the agent is: otherwise it would pay for its loading, and the agent not. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const REQUIRE = `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);`

export type StockEntry = { path: string } & Disposable

export async function stockEntry(): Promise<StockEntry> {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-stock-'))
  const path = join(directory, 'stock-node.mjs')
  await build({
    entryPoints: [fileURLToPath(new URL('stock-node.ts', import.meta.url))],
    outfile: path,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    minify: true,
    keepNames: true,
    banner: { js: REQUIRE },
    logLevel: 'warning',
  })
  return { path, [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }) }
}
