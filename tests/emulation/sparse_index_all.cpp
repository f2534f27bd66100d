// Every variant of the sparse index kernel, for the slow tests.
#define EXPLAINFIX_ALL_VARIANTS true
#define EXPLAINFIX_MODULE host_sparse_index_all
#include "sparse_index.cpp"
