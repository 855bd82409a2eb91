/**
 * `npm run build`: the agent as plain JavaScript in dist/, for what is installed. One entry, dist/main.js; the daemon and the heavier
 * commands are chunks of their own, loaded when they are needed.
 *
 * koffi stays outside: it carries native code that has to lie beside its own files. The output depends on the sources only.
 */
import { chmodSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))

/** CommonJS packages inside an ES module call `require` for Node's builtins. */
const REQUIRE = `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);`

rmSync(`${root}dist`, { recursive: true, force: true })
const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: ['agent/main.ts'],
  outdir: 'dist',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node24',
  minify: true,
  // Names of classes are seen in errors and logs.
  keepNames: true,
  legalComments: 'none',
  external: ['koffi'],
  banner: { js: REQUIRE },
  metafile: true,
  logLevel: 'warning',
})
chmodSync(`${root}dist/main.js`, 0o755)

const sizes = Object.entries(metafile.outputs).map(([file, { bytes }]) => ({ file, bytes }))
const totalBytes = sizes.reduce((sum, { bytes }) => sum + bytes, 0)
process.stdout.write(`dist/main.js and ${sizes.length - 1} chunks, ${Math.round(totalBytes / 1024)} KiB\n`)
