/** Before all tests with real agents: one bundle for all of them, since each file would spend seconds on one of its own. */
import { Bundle, SHARED_BUNDLE } from './agents.ts'

export default async function setup(): Promise<(() => void) | undefined> {
  if (Bundle.shared) return undefined
  const bundle = await Bundle.build()
  process.env[SHARED_BUNDLE] = bundle.directory
  return () => bundle[Symbol.dispose]()
}
