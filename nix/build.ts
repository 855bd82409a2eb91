/**
 * `npm run build`: the agent as plain JavaScript in dist/ (or in a new directory that is given), for what is installed. One entry, main.js;
 * the daemon and the heavier commands are chunks of their own, loaded when they are needed.
 *
 * koffi stays outside: it carries native code that has to lie beside its own files. The output depends on the sources only.
 */
import { chmodSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))
const outdir = resolve(process.argv[2] ?? join(root, 'dist'))

/** CommonJS packages inside an ES module call `require` for Node's builtins. */
const REQUIRE = `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);`

if (process.argv[2] === undefined) rmSync(outdir, { recursive: true, force: true })
const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: ['agent/main.ts'],
  outdir,
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
chmodSync(join(outdir, 'main.js'), 0o755)

const sizes = Object.entries(metafile.outputs).map(([file, { bytes }]) => ({ file, bytes }))
const totalBytes = sizes.reduce((sum, { bytes }) => sum + bytes, 0)
process.stdout.write(
  `${join(outdir, 'main.js')} and ${sizes.length - 1} chunks, ${Math.round(totalBytes / 1024)} KiB\n`,
)
